"""The model of a stage: transformers' model code, reduced to one range of layers.

A subclass of the model class drops the modules of other stages after it is built on the meta
device. transformers' `from_pretrained` does the rest: it reads only the tensors that remain
(safetensors are mapped lazily), renames and merges the weights of old checkpoints, ties embeddings,
makes buffers and dequantises weights.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from configs.config import EngineConfig
from configs.schema.model import ModelConfig
from configs.schema.pipeline import PipelineConfig
from wire.messages import RopeRule
from workers.kernels.library import Library
from workers.model import layer_split, partitioning, quantisation, tensor_parallel
from workers.model.attention import interface, masks
from workers.model.attention.interface import (
    Calls,
    Learn,
    UnsupportedModelError,
    forward_context,
)
from workers.model.attention.probe import Probe
from workers.model.context_length import ContextLength, context_length
from workers.model.fused import replace
from workers.model.fused.operations import FusedOperations
from workers.model.fused.rotary import RotaryFunctions
from workers.model.packed import experts, linears
from workers.model.partitioning import LeaveStage, Port
from workers.model.rope import TokenRope
from workers.model.structure import Structure, last_cut, layers_of

log = logging.getLogger("tdpipe")


class StageModel:
    """Layers `layers` of a causal language model, with embedding or head on the outer stages.

    The first stage takes token ids, the others take hidden states; the last returns logits. Token
    ids are below `vocab_size`, which on the last stage is also the width of the logits.
    """

    def __init__(self, model: PreTrainedModel, layers: range) -> None:
        self._model = model
        self.layers = layers
        self.config = model.config.get_text_config()
        self.is_first = layers.start == 0
        self.is_last = layers.stop == self.config.num_hidden_layers
        port = model.stage_port
        assert isinstance(port, Port)
        self._port = port
        self._calls: Calls = {}
        self._takes_sampled = "logits_to_keep" in signature(model.forward).parameters
        self.dtype: torch.dtype = model.dtype
        self._device = model.device
        self.compiles_for_each_size = self._device.type == "cpu" and self.dtype != torch.float32
        self._rotary = RotaryFunctions()
        self._rope = TokenRope(model)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.vocab_size = _num_token_ids(model, is_first=self.is_first, is_last=self.is_last)

    @property
    def input_width(self) -> int:
        """Width of the activations that the stage before sends."""
        return self._port.width_at(self.layers.start, int(self.config.hidden_size))

    @property
    def output_width(self) -> int:
        """Width of the activations that go to the next stage."""
        return self._port.width_at(self.layers.stop, int(self.config.hidden_size))

    @property
    def max_model_len(self) -> int:
        """The longest sequence in tokens that the model supports."""
        return self.context_length.tokens

    @property
    def context_length(self) -> ContextLength:
        """The longest sequence, and the reason for this limit."""
        return context_length(self.config)

    @property
    def rope_rule(self) -> RopeRule | None:
        """What the engine must know if RoPE depends on the lengths of sequences."""
        return self._rope.rule

    @property
    def module(self) -> PreTrainedModel:
        """transformers' model without the other stages' modules."""
        return self._model

    @property
    def layer_modules(self) -> list[nn.Module]:
        """The layers that the stage holds, in order."""
        all_layers = layers_of(self._model)
        return [all_layers[i] for i in self.layers]

    @property
    def num_bytes(self) -> int:
        """The memory of the weights in bytes."""
        return bytes_of(self._model)

    def probe(self, num_tokens: int) -> Probe:
        """Run a prompt of token 0, to learn how each layer attends; must come before any step.

        Raises `UnsupportedModelError` for a layer that keeps state other than KV.
        """
        device = self._device
        positions = torch.arange(num_tokens, device=device)[None]
        received = None
        if not self.is_first:
            received = torch.zeros(num_tokens, self.input_width, dtype=self.dtype, device=device)
        probe = Probe(self.config.num_hidden_layers)
        with masks.are_read(self._model):
            # All tokens of a batch may belong to a prompt that is to be scored.
            probe.output = self._run(
                torch.zeros_like(positions), positions, positions[0], received, None, probe, probe
            )
        known = {layer for layer, _ in probe.calls}
        silent = [layer for layer in self.layers if layer not in known]
        if silent:
            raise UnsupportedModelError(f"layer {silent[0]} keeps no KV that can be paged")
        foreign = {kv % self.config.num_hidden_layers for kv in probe.layers} - set(self.layers)
        if foreign:
            raise UnsupportedModelError(f"layer {min(foreign)} shares its KV with another stage")
        self._calls = probe.calls
        return probe

    def forward(
        self,
        token_ids: Tensor,  # [1, tokens]
        position_ids: Tensor,  # [1, tokens]
        sample_at: Tensor,
        step: interface.Attend,
        received: Tensor | None = None,
        rope_lens: Tensor | None = None,
    ) -> Tensor:
        """Run the layers; a later stage takes what the stage before has returned.

        `rope_lens` `[1, tokens]` are the RoPE lengths of the tokens, see `rope`.
        Returns `[tokens, output width]`, or logits `[sampling rows, vocabulary]` on the last stage.
        """
        return self._run(token_ids, position_ids, sample_at, received, rope_lens, step, self._calls)

    @torch.inference_mode()
    def _run(
        self,
        token_ids: Tensor,
        position_ids: Tensor,
        sample_at: Tensor,
        received: Tensor | None,
        rope_lens: Tensor | None,
        step: interface.Attend,
        calls: Calls | Learn,
    ) -> Tensor:
        num_tokens = position_ids.shape[1]
        count = self._padded(num_tokens)
        keep = _pad(sample_at, self._padded(len(sample_at)), dim=0)
        arguments: dict[str, Any] = {
            "input_ids": _pad(token_ids, count, dim=1),
            "position_ids": _pad(position_ids, count, dim=1),
            "use_cache": False,
        }
        if self._takes_sampled:
            arguments["logits_to_keep"] = keep
        lens = None if rope_lens is None else _pad(rope_lens, count, dim=1)
        self._port.received = received if received is None else _pad(received, count, dim=0)
        with self._rotary.replaced(), self._rope.lengths(lens), forward_context(step, calls):
            try:
                logits: Tensor = self._model(**arguments).logits[0]
            except LeaveStage as left:
                return self._port.rows(left.hidden)[:num_tokens]
        return logits[: len(sample_at)] if self._takes_sampled else logits[sample_at]

    @torch.inference_mode()
    def fuse(self, operations: FusedOperations) -> int:
        """Replace norms, MLPs and rotary functions by kernels, see `fused`; returns how many."""
        self._rotary = RotaryFunctions(self._model, operations)
        return replace.fuse(self._model, operations).total()

    @torch.inference_mode()
    def pack_linears(self, library: Library) -> int:
        """Pack linear layers and experts, see `linears` and `experts`; returns how many."""
        num_packed = linears.pack(self._model, library) + experts.pack(self._model, library)
        if num_packed:
            self.compiles_for_each_size = False  # oneDNN computes no linear layers any more
        return num_packed

    def sizes(self, most: int) -> list[int]:
        """The numbers of rows, after padding, of steps of up to `most` tokens."""
        return sorted({self._padded(count) for count in range(1, most + 1)})

    def _padded(self, count: int) -> int:
        """Pad a number of rows for torch's products: to at least two, and on a CPU to a few sizes.

        A product with one row runs in a different kernel (gemv): on a CPU without AMX, it rounds 1
        of 20,000 bf16 results differently, so an answer would depend on whether the sequence was in
        a batch of one. In addition, oneDNN compiles each product for each new number of rows, in
        1 ms: the first step of each size took 1.5 times as long, at the median, in the demo
        model. Packed layers need neither; routers of experts are torch's and need two rows.
        """
        if not self.compiles_for_each_size or count <= 2:
            return max(count, 2)
        step = 1 << max(2, (count - 1).bit_length() - 4)  # eight sizes per power of two
        return -(-count // step) * step


def load(
    config: EngineConfig,
    part: int,
    device: torch.device,
    structure: Structure,
    ranges: Sequence[range] | None = None,
    tensor_group: tensor_parallel.MeshGroup | None = None,
) -> StageModel:
    """Load a part of the configured model, with its weights, onto the device.

    Part i belongs to stage i, or with virtual stages to stage i modulo the number of stages.
    `ranges` are the layers of all parts, if they are already known. Raises
    `UnsupportedModelError`, `PartitionError`, or the errors of transformers and safetensors for a
    checkpoint that is missing, damaged or incomplete (`OSError`, `ValueError`, `SafetensorError`).
    """
    checkpoint = config.model
    whole_config = read_config(checkpoint)
    model_class, model_config = class_of(whole_config, checkpoint)
    source: dict[str, Any] = {
        "revision": checkpoint.revision,
        "trust_remote_code": checkpoint.trust_remote_code,
    }
    dtype = checkpoint.dtype if checkpoint.dtype == "auto" else getattr(torch, checkpoint.dtype)
    quantisation.check_requirements(model_config)
    layers = (ranges or split(checkpoint, config.pipeline, whole_config))[part]
    stage_class = partitioning.stage_class(model_class, layers, structure)
    is_quantised = quantisation.method_of(model_config) is not None
    if tensor_group is not None:
        if is_quantised:
            raise UnsupportedModelError(
                "quantised weights cannot be divided (tensor_parallel_size): use "
                "--pipeline-parallel-size alone"
            )
        stage_class = tensor_parallel.sharded_class(stage_class, tensor_group.mesh)
    if device.type == "cpu" and not is_quantised:
        source["experts_implementation"] = experts.NAME
    previous_hook = transformers_logging.set_tqdm_hook(
        _progress_of(part % config.pipeline.pipeline_parallel_size)
    )
    try:
        model, report = stage_class.from_pretrained(
            checkpoint.model,
            **source,
            config=model_config,
            dtype=dtype,
            attn_implementation=interface.NAME,
            device_map={"": device},
            use_safetensors=checkpoint.load_format == "safetensors",
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # or it would raise without naming the tensor
        )
    finally:
        transformers_logging.set_tqdm_hook(previous_hook)
    _check_report(report)
    if is_quantised:
        quantisation.check_dtype(model, dtype)
        quantisation.decompress(model)
    if tensor_group is not None:
        tensor_parallel.join_ranks(model, tensor_group)
    return StageModel(model.eval(), layers)


def read_config(config: ModelConfig) -> PretrainedConfig:
    """Read the config of the model; raises `ValueError` with a message of one line."""
    source = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        return AutoConfig.from_pretrained(config.model, **source)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot load {config.model}: {first_line}") from error


def bytes_per_token(config: ModelConfig) -> int:
    """The bytes of one token's activations between stages; raises `ValueError`."""
    model_config = read_config(config)
    dtype = model_config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    width = int(model_config.get_text_config().hidden_size)
    return width * int((dtype or torch.float32).itemsize)


def bytes_of(module: nn.Module) -> int:
    """The memory of a module's weights in bytes."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def split(
    checkpoint: ModelConfig, config: PipelineConfig, model_config: PretrainedConfig
) -> list[range]:
    """The layers of each virtual stage: as set, or balanced by parameters."""
    num_layers = model_config.get_text_config().num_hidden_layers
    whole = _whole_on_meta(model_config, checkpoint)
    layers = layers_of(whole)
    last = last_cut(layers)
    if isinstance(config.layer_split, tuple):
        return layer_split.split_by_hand(config.layer_split, num_layers, last)
    embedding, head = whole.get_input_embeddings(), whole.get_output_embeddings()
    return layer_split.balance(
        [_count(layer) for layer in layers],
        _count(embedding),
        _count(head),
        config.pipeline_parallel_size * config.virtual_pipeline_size,
        last,
    )


def find_last_cut(checkpoint: ModelConfig) -> int:
    """The last layer that a stage may begin with; raises `ValueError`."""
    return last_cut(layers_of(_whole_on_meta(read_config(checkpoint), checkpoint)))


def _whole_on_meta(model_config: PretrainedConfig, checkpoint: ModelConfig) -> PreTrainedModel:
    """The whole model without memory."""
    model_class, model_config = class_of(model_config, checkpoint)
    with torch.device("meta"):
        whole: PreTrainedModel = model_class._from_config(copy.deepcopy(model_config))
    return whole


def _check_report(report: dict[str, Any]) -> None:
    """Raise `ValueError` if tensors are missing or have another shape than config.json says.

    The latter happens where embeddings were resized and config.json still has the old vocab_size.
    """
    if report["mismatched_keys"]:
        name, in_file, expected = min(report["mismatched_keys"])
        raise ValueError(
            f"{name} has the shape {tuple(in_file)} in the checkpoint, and {tuple(expected)} "
            "according to config.json"
        )
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise ValueError(f"the checkpoint lacks {len(lacking)} tensors, e.g. {lacking[0]}")


def class_of(
    model_config: PretrainedConfig, config: ModelConfig
) -> tuple[type[PreTrainedModel], PretrainedConfig]:
    """The causal language model class of this family, and the config that it takes.

    That is the config of the text model if the class has no other parts.
    """
    model_class: type[PreTrainedModel]
    if config.trust_remote_code and "AutoModelForCausalLM" in getattr(model_config, "auto_map", {}):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        reference = model_config.auto_map["AutoModelForCausalLM"]
        model_class = get_class_from_dynamic_module(reference, config.model)
    elif type(model_config) in AutoModelForCausalLM._model_mapping:
        model_class = AutoModelForCausalLM._model_mapping[type(model_config)]
    else:
        raise UnsupportedModelError(
            f"{model_config.model_type} models are not causal language models"
        )
    text_class = model_config.sub_configs.get("text_config")
    if text_class is not None and model_class.config_class is text_class:
        return model_class, model_config.get_text_config()
    return model_class, model_config


def _pad(rows: Tensor, count: int, dim: int) -> Tensor:
    """Pad to `count` rows along `dim` with copies of the last row, unless there are no rows."""
    more = count - rows.shape[dim]
    if more <= 0 or not rows.shape[dim]:
        return rows
    last = rows.narrow(dim, rows.shape[dim] - 1, 1)
    return torch.cat([rows, *[last] * more], dim)


def _num_token_ids(model: PreTrainedModel, *, is_first: bool, is_last: bool) -> int:
    """The width of the logits, or else the rows of the embedding, or else what the config says.

    They differ in few families: Mllama's embedding has eight more rows than its head.
    """
    head = getattr(model.get_output_embeddings(), "out_features", None) if is_last else None
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None) if is_first else None
    return int(head or rows or model.config.get_text_config().vocab_size)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _progress_of(
    stage: int,
) -> Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]:
    """Make a hook that adds the name of the stage to transformers' progress bars.

    A bar in a file would be hundreds of lines, so there are only bars on terminals.
    """

    def make_bar(factory: Callable[..., Any], args: tuple[Any, ...], kw: dict[str, Any]) -> Any:
        kw |= {"desc": f"stage {stage}: {kw.get('desc', 'loading').lower()}", "unit": " tensors"}
        kw["disable"] = kw.get("disable") or None  # None: if it is no terminal
        return factory(*args, **kw)

    return make_bar


def describe(model: StageModel) -> str:
    """Describe the stage's part of the model in one line for the log."""
    layers = f"layers {model.layers.start}-{model.layers.stop - 1}"
    parts = ["embedding"] * model.is_first + [layers] + ["head"] * model.is_last
    return f"{' + '.join(parts)}, {model.num_parameters / 1e6:.1f} M parameters, {model.dtype}"
