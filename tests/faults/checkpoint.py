"""The demo model as a checkpoint with code of its own, which fails on demand."""

import json
import shutil
from pathlib import Path

from configs.schema.model import DEMO_MODEL
from tests.faults import levered_llama


class Levers:
    """The folder that the model's code reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def pull(self, stage: int, how: str) -> None:
        """The stage's next forward fails."""
        (self.folder / "pulled").unlink(missing_ok=True)
        draft = self.folder / "draft"
        draft.write_text(how)
        draft.rename(self.folder / str(stage))

    def hang(self, stage: int) -> None:
        """The stage never finishes its start."""
        (self.folder / f"hang-{stage}").touch()

    def pulled_at(self) -> float:
        """When the stage failed, by the monotonic clock. Raises `OSError` where it has not."""
        return float((self.folder / "pulled").read_text())


def levered_demo(folder: Path) -> tuple[Path, Levers]:
    """The checkpoint, and its levers."""
    model = shutil.copytree(DEMO_MODEL, folder / "tdpipe-demo", copy_function=shutil.copyfile)
    levers = Levers(folder / "levers")
    code = Path(levered_llama.__file__)
    shutil.copyfile(code, model / code.name)
    settings = json.loads((model / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForCausalLM": f"{code.stem}.LeveredLlama"}
    settings["levers"] = str(levers.folder)
    (model / "config.json").write_text(json.dumps(settings))
    return model, levers
