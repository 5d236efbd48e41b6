"""Ranks: the processes of the stages, and their names.

With tensor parallelism a stage has several ranks, which are numbered from 0 in their stage. Global
ranks count through the stages: those of stage 0 come first.
"""


def stage_and_rank(global_rank: int, ranks_per_stage: int) -> tuple[int, int]:
    """The stage of a process, and its number in the stage."""
    return divmod(global_rank, ranks_per_stage)


def describe(stage: int, tensor_rank: int) -> str:
    """A rank in the log; the first one, often the only one, stands for its stage."""
    return f"stage {stage}" + (f" rank {tensor_rank}" if tensor_rank else "")


def socket_name(kind: str, stage: int, tensor_rank: int) -> str:
    """The name under which a rank connects to the engine, e.g. `stage-1` or `stage-1.2`."""
    return f"{kind}-{stage}" + (f".{tensor_rank}" if tensor_rank else "")
