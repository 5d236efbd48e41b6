"""The checkpoint: checks its path before anything slow is started."""

from pathlib import Path


def check_model_path(model: str) -> str | None:
    """The reason why the path `model` cannot be loaded, or None; hub ids are not checked."""
    path = Path(model)
    if path.is_dir():
        return None if (path / "config.json").is_file() else f"{model} holds no config.json"
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        return f"there is no folder {model}"
    return None
