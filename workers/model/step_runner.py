"""The step runner: brings a step to the device and runs the stage's layers on it."""

import torch
from torch import Tensor

from wire.messages import Step
from workers.device.upload import upload_to
from workers.model import batch
from workers.model.attention.backends import Backend
from workers.model.batch import StepBatch
from workers.model.kv_cache import KvCache
from workers.model.stage_model import StageModel


class StepRunner:
    """Runs steps on one stage; nothing here waits for the device."""

    def __init__(
        self,
        model: StageModel,
        attention: Backend,
        cache: KvCache,
        block_size: int,
        device: torch.device,
    ) -> None:
        self.model, self.cache, self.block_size = model, cache, block_size
        self._attention, self._upload = attention, upload_to(device)

    def prepare(self, step: Step) -> StepBatch:
        """The batch of a step, on the device."""
        return batch.build(step, self.block_size, self._upload, self._attention.arrays)

    def run(self, inputs: StepBatch, received: Tensor | None) -> Tensor:
        """Run the layers on the token ids, or on the activations `[tokens, hidden]` of a stage.

        Returns `[tokens, hidden]`, or on the last stage the logits at `inputs.output_at`.
        """
        return self.model.forward(
            inputs.token_ids if received is None else received,
            inputs.position_ids,
            inputs.output_at,
            self._attention.step(self.cache, inputs),
        )
