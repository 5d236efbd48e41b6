"""The step runner: brings a step to the device and runs the stage's layers on it."""

from functools import partial

import torch
from torch import Tensor

from wire.messages import Step
from workers.device.upload import PackedUpload, Upload, upload_to
from workers.model import batch, decode_graphs
from workers.model.attention.backends import Backend
from workers.model.batch import StepBatch
from workers.model.decode_graphs import (
    Capture,
    DecodeBatch,
    DecodeGraphs,
    GraphLimits,
    ShowProgress,
)
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
        upload: Upload | None = None,
    ) -> None:
        """`upload` replaces the device's own."""
        self.model, self.cache, self.block_size = model, cache, block_size
        self._attention, self._upload = attention, upload or upload_to(device)
        self._graphs: DecodeGraphs | None = None

    @property
    def has_graphs(self) -> bool:
        """Whether decode steps replay CUDA graphs."""
        return self._graphs is not None

    def prepare(self, step: Step) -> StepBatch | DecodeBatch:
        """The numbers of a step, on the device."""
        host = batch.unpack(step, self.block_size)
        if self._graphs is not None and (fitting := self._graphs.prepare(host)) is not None:
            return fitting
        return batch.send(host, self._upload, self._attention.arrays)

    def run(self, inputs: StepBatch | DecodeBatch, received: Tensor | None) -> Tensor:
        """Run the layers, on a later stage with the activations `[tokens, width]` received.

        Returns `[tokens, width]`, or on the last stage the logits of the rows that sample and of
        the scored tokens. The result is valid until the next step runs.
        """
        if isinstance(inputs, DecodeBatch):
            assert self._graphs is not None
            return self._graphs.run(inputs, received)
        return self.model.forward(
            inputs.token_ids,
            inputs.position_ids,
            inputs.output_at,
            self._attention.step(self.cache, inputs),
            received,
            inputs.rope_lens,
        )

    def capture(self, capture: Capture, limits: GraphLimits, show: ShowProgress = list) -> None:
        """Capture graphs for decode steps, where that is possible.

        The KV cache must be unused. `show` shows the progress.
        """
        make = partial(self._make_graphs, capture, limits)
        self._graphs = decode_graphs.capture_all(make, capture.used_bytes, show)

    def estimate_graph_bytes(self, capture: Capture, limits: GraphLimits) -> int:
        """The memory that `capture` will take, whatever the size of the KV cache."""
        make = partial(self._make_graphs, capture, limits)
        return decode_graphs.estimate_bytes(make, capture.used_bytes)

    def _make_graphs(self, capture: Capture, limits: GraphLimits) -> DecodeGraphs:
        upload, size = self._upload, self.block_size
        assert isinstance(upload, PackedUpload), "graphs read static memory"
        return DecodeGraphs(self.model, self._attention, self.cache, size, upload, capture, limits)
