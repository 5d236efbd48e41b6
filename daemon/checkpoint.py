"""The checkpoint's path: checked before anything slow is started."""

from pathlib import Path


def check_model_path(model: str) -> str | None:
    """The reason why the path `model` cannot be loaded, or None; hub ids are not checked."""
    path = Path(model)
    if path.is_dir():
        is_checkpoint = (path / "config.json").is_file()
        return None if is_checkpoint else f"{model} is not a checkpoint: it has no config.json"
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        return (
            f"there is no folder {model}; give a checkpoint folder or a Hugging Face id (org/name)"
        )
    return None
