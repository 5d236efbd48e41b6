"""A Llama that fails on demand: in the stage, at the time and in the way that a test chooses.

It is part of a checkpoint, like the code of any custom model (`--trust-remote-code`), so that a
real stage raises a real exception without test code in the daemon. A test makes a stage fail once
by writing the kind of failure to a file with the stage's number as its name (a lever). `POISON`
token ids make their stage raise an exception each time.
"""

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaForCausalLM

# Bytes that no text has, in the demo's tokenizer: one for each stage, and one more.
POISON = (187, 188, 189)
DEADLY = 186


class LeveredLlama(LlamaForCausalLM):
    """The model that `config.levers`, a folder, can make fail."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._levers = Path(config.levers)
        self.model.register_forward_pre_hook(self._look, with_kwargs=True)
        while (self._levers / f"hang-{os.environ.get('RANK')}").exists():
            time.sleep(1)

    def _look(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        stage = dist.get_rank()
        lever = self._levers / str(stage)
        if lever.exists():
            how = lever.read_text()
            lever.unlink()
            (self._levers / "pulled").write_text(str(time.monotonic()))
            if how == "memory error":
                torch.empty(1 << 60, dtype=torch.uint8)
            raise RuntimeError("a lever was pulled")
        token_ids = inputs["input_ids"]  # each stage gets them
        if stage == 0 and bool((token_ids == DEADLY).any()):
            os.abort()
        if bool((token_ids == POISON[stage]).any()):
            raise RuntimeError("poison")
