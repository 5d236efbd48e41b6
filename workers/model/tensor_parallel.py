"""Tensor parallelism: each rank of a stage holds a part of the weights of its layers.

transformers has a plan for each family: by the name of a module or a parameter, in which direction
it is divided. Before the weights are loaded, the parameters of the plan become DTensors without
memory, of which transformers' loader reads only this rank's part. Afterwards they are ordinary
tensors again, so that all kernels take them, and the modules after which ranks must add up or put
together their results are wrapped:

    colwise     the outputs are divided, e.g. the heads of a query projection: nothing to do
    rowwise     the inputs are divided, e.g. those of the output projection: sum of all ranks
    vocabulary  the embedding looks up its own tokens: sum; the LM head: outputs put together
    experts     each expert is divided like an MLP: sum

Names of styles: https://huggingface.co/docs/transformers/perf_infer_gpu_multi.
"""

import re
from collections.abc import Container, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from transformers import PretrainedConfig, PreTrainedModel

from workers.model.attention.interface import UnsupportedModelError
from workers.model.structure import overrides_of, read_setting

# The styles that divide a parameter, by the dimension that they divide, counted from the last one.
_OUTPUTS = ("colwise", "colwise_rep", "colwise_gather_output")
_INPUTS = ("rowwise", "rowwise_rep", "rowwise_split_input")
_PACKED = {"packed_colwise": -2, "packed_rowwise": -1}
_VOCABULARY = "embedding_rowwise"
# Styles of whole modules or with an effect on gradients only: every rank keeps the parameters.
_WHOLE = (
    "all_reduce",
    "local_params",
    "mla_kv_a_proj",
    "moe_tp_experts",
    "replicate",
    "replicated_with_grad_allreduce",
)
# Gate and up projection of an expert are one matrix, each half of which is divided.
_PARTS = 2

Plan = Mapping[str, str]


class TensorGroup(Protocol):
    """The ranks of a stage; all of them must call a collective at the same time."""

    @property
    def rank(self) -> int:
        """The number of this rank in the stage."""

    @property
    def size(self) -> int:
        """The number of ranks in the stage."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of the tensors of all ranks; `tensor` may be overwritten."""

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, which have one shape."""


class MeshGroup(TensorGroup, Protocol):
    """The same, as a mesh of devices."""

    @property
    def mesh(self) -> DeviceMesh:
        """The ranks of the stage, one dimension."""


def plan_of(model: PreTrainedModel) -> Plan:
    """transformers' plan, by names with `*` for numbers.

    Raises `UnsupportedModelError` if there is none, or a style is not known.
    """
    plan: Plan = dict(model.tp_plan or {})
    kind = model.config.model_type
    if not any(style in _INPUTS for style in plan.values()):
        raise UnsupportedModelError(
            f"transformers has no tensor-parallel plan for {kind} models: use "
            "--pipeline-parallel-size alone"
        )
    known = {*_OUTPUTS, *_INPUTS, *_PACKED, _VOCABULARY, *_WHOLE}
    if unknown := set(plan.values()) - known:
        raise UnsupportedModelError(
            f"the tensor-parallel plan of {kind} models has {min(unknown)}, which is not supported"
        )
    return plan


def check_heads(config: PretrainedConfig, size: int) -> None:
    """Raise `UnsupportedModelError` if the heads cannot be divided by the number of ranks."""
    text = config.get_text_config()
    for name in ("num_key_value_heads", "num_attention_heads"):
        of_layers = [each[name] for each in overrides_of(text).values() if name in each]
        for heads in (read_setting(text, name), *of_layers):
            counts = heads if isinstance(heads, (list, tuple)) else [heads]
            if any(isinstance(count, int) and count % size for count in counts):
                raise UnsupportedModelError(
                    f"the model has {heads} heads ({name}), which {size} ranks "
                    "(tensor_parallel_size) cannot share evenly"
                )


def _check_experts(whole: Tensor, part: Tensor, size: int) -> None:
    """Raise `UnsupportedModelError` if torch cannot multiply with a part of all experts.

    `torch.nn.functional.grouped_mm` takes only rows of a multiple of 16 bytes.
    """
    width, part_width = whole.shape[-1], part.shape[-1]
    is_divided = whole.ndim == 3 and width != part_width
    if is_divided and part_width * part.itemsize % 16 and not width * whole.itemsize % 16:
        raise UnsupportedModelError(
            f"experts of width {width} cannot be divided by {size} ranks (tensor_parallel_size): "
            f"{part_width} values of {part.dtype} are no multiple of 16 bytes"
        )


def sharded_class(stage_class: type[PreTrainedModel], mesh: DeviceMesh) -> type[PreTrainedModel]:
    """Make a class that builds a stage's model with this rank's parts only, see `shard`."""

    def build_and_shard(
        self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kw: Any
    ) -> None:
        stage_class.__init__(self, config, *args, **kw)
        shard(self, mesh)

    members = {"__init__": build_and_shard, "__module__": stage_class.__module__}
    return type(stage_class.__name__, (stage_class,), members)


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Turn the parameters of a model without memory into this rank's parts, without memory too.

    Raises `UnsupportedModelError`.
    """
    plan = plan_of(model)
    check_heads(model.config, mesh.size())
    for module_name, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            placement = placement_of(plan, module_name, name, parameter)
            if placement is not None:
                part = distribute_tensor(parameter, mesh, [placement], src_data_rank=None)
                _check_experts(parameter, part.to_local(), mesh.size())
                module._parameters[name] = nn.Parameter(part, requires_grad=False)


def placement_of(plan: Plan, module_name: str, name: str, parameter: Tensor) -> Placement | None:
    """How a parameter is divided, or None if every rank has all of it."""
    style = plan.get(_pattern(f"{module_name}.{name}")) or plan.get(_pattern(module_name))
    if style in _PACKED:
        dim = max(0, parameter.ndim + _PACKED[style])
        return _StridedShard(dim, split_factor=_PARTS)
    if style in _OUTPUTS:
        return Shard(max(0, parameter.ndim - 2))
    if style in _INPUTS:
        return Replicate() if parameter.ndim == 1 else Shard(parameter.ndim - 1)
    return Shard(0) if style == _VOCABULARY else None


def join_ranks(model: PreTrainedModel, group: TensorGroup) -> None:
    """Make a model with this rank's parts complete: plain parameters, and sums where needed."""
    _wrap(model, plan_of(model), group, _plain_parameters(model))


def keep_part(model: PreTrainedModel, group: TensorGroup) -> None:
    """Keep this rank's part of a model with weights, with sums where needed.

    Raises `UnsupportedModelError`.
    """
    plan = plan_of(model)
    parts: dict[int, nn.Parameter] = {}
    divided = set()
    for module_name, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            placement = placement_of(plan, module_name, name, parameter)
            if placement is not None and id(parameter) not in parts:
                part = _part_of(parameter.detach(), placement, group)
                parts[id(parameter)] = nn.Parameter(part, requires_grad=False)
            if id(parameter) in parts:  # an embedding and a head may share it
                module._parameters[name] = parts[id(parameter)]
                divided.add(module)
    _wrap(model, plan, group, divided)


def _part_of(tensor: Tensor, placement: Placement | None, group: TensorGroup) -> Tensor:
    """This rank's part of a tensor."""
    if not isinstance(placement, Shard | _StridedShard):
        return tensor
    num_halves = int(placement.split_factor) if isinstance(placement, _StridedShard) else 1
    halves = []
    for half in tensor.chunk(num_halves, placement.dim):
        width = -(-half.shape[placement.dim] // group.size)
        begin = min(group.rank * width, half.shape[placement.dim])
        width = min(width, half.shape[placement.dim] - begin)
        halves.append(half.narrow(placement.dim, begin, width))
    return torch.cat(halves, placement.dim)


def _wrap(
    model: PreTrainedModel, plan: Plan, group: TensorGroup, divided: Container[nn.Module]
) -> None:
    """Wrap the modules after which ranks must exchange results.

    `divided` are the modules with a part of a parameter. Raises `UnsupportedModelError`.
    """
    names = [name for name, _ in model.named_modules() if name]
    for name in reversed(names):  # the inner ones first
        style = plan.get(_pattern(name))
        if style is None:
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        key = name.rpartition(".")[2]
        module = getattr(parent, key)
        wrapped = _wrapped(module, style, group, is_divided=module in divided)
        if wrapped is not module:
            setattr(parent, key, wrapped)


def _plain_parameters(model: nn.Module) -> set[nn.Module]:
    """Replace the DTensors by their local parts; returns the modules that had any."""
    local: dict[int, nn.Parameter] = {}
    divided = set()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter.data, DTensor):
                if id(parameter) not in local:  # an embedding and a head may share it
                    part = parameter.data.to_local()
                    local[id(parameter)] = nn.Parameter(part, requires_grad=False)
                module._parameters[name] = local[id(parameter)]
                divided.add(module)
    return divided


def _wrapped(module: Any, style: str, group: TensorGroup, *, is_divided: bool) -> Any:
    """The module with what must be done before and after it; the module itself if nothing."""
    if style in ("moe_tp_experts", "all_reduce"):
        return Summed(module, group)
    if not is_divided:  # e.g. a head whose weight is an embedding's that is not divided
        return module
    if style == _VOCABULARY:
        return VocabularyPart(module, group)
    if not isinstance(module, nn.Linear):
        raise UnsupportedModelError(
            f"the tensor-parallel plan divides a {type(module).__name__}, which is not supported"
        )
    if style in _INPUTS:
        module.in_features = module.weight.shape[1]
        if group.rank:
            module.register_parameter("bias", None)  # rank 0 adds it
        return Summed(module, group, takes_all=style != "rowwise")
    if style in ("colwise_rep", "colwise_gather_output"):
        return Gathered(module, group)
    module.out_features = module.weight.shape[0]
    return module


class _Around(nn.Module):
    """A module of one rank, with the attributes of the module inside."""

    def __init__(self, module: nn.Module, group: TensorGroup) -> None:
        super().__init__()
        self.part, self._group = module, group

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("part"), name)


class Summed(_Around):
    """Its result is the sum of all ranks' results."""

    def __init__(self, module: nn.Module, group: TensorGroup, *, takes_all: bool = False) -> None:
        """With `takes_all` the input has the columns of all ranks."""
        super().__init__(module, group)
        self._takes_all = takes_all

    def forward(self, inputs: Tensor, *args: Any, **kw: Any) -> Tensor:
        """Return what the whole module would."""
        if self._takes_all:
            width = -(-inputs.shape[-1] // self._group.size)
            begin = self._group.rank * width
            inputs = inputs[..., begin : begin + width]
        return self._group.all_reduce(self.part(inputs, *args, **kw))


class Gathered(_Around):
    """A linear layer with the outputs of all ranks; a rank may have fewer than the others."""

    def __init__(self, module: nn.Linear, group: TensorGroup) -> None:
        super().__init__(module, group)
        self.out_features = module.out_features
        self._width = -(-self.out_features // group.size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `[..., all outputs]`."""
        part = self.part(inputs)
        if part.shape[-1] < self._width:
            part = nn.functional.pad(part, (0, self._width - part.shape[-1]))
        return torch.cat(self._group.all_gather(part), -1)[..., : self.out_features]


class VocabularyPart(_Around):
    """An embedding of some tokens; the other ranks have the others'."""

    def __init__(self, module: nn.Embedding, group: TensorGroup) -> None:
        super().__init__(module, group)
        self._begin = group.rank * -(-module.num_embeddings // group.size)
        self._num_rows = module.weight.shape[0]

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return `[..., width]`."""
        rows = token_ids - self._begin
        is_here = (rows >= 0) & (rows < self._num_rows)
        found = self.part(torch.where(is_here, rows, 0))
        return self._group.all_reduce(found * is_here[..., None])


def _pattern(name: str) -> str:
    """The name in a plan: numbers of layers and experts are `*`."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
