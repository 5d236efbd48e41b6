"""The comparison of a fused operation with the operations that it replaces."""

import torch
from torch import Tensor, nn

# A sum in another order differs in the last bits of fp32. It is rounded to 16 bits afterwards, so
# that few results differ, by one unit in the last place.
RELATIVE_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
MOST_UNEQUAL = 0.02  # of the elements, in 16 bits


def random_values(*shape: int, device: torch.device | None = None) -> Tensor:
    """Normally distributed values, the same at each start and on each device [CPU]."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), device="cpu").to(device)


def result_of(module: nn.Module, *inputs: Tensor) -> Tensor | None:
    """What a module of a model returns, or None if it is called in another way than this."""
    try:
        result = module(*inputs)
    except Exception:  # of the code of any model
        return None
    return result if isinstance(result, Tensor) else None


def is_same(got: Tensor, wanted: Tensor | None) -> bool:
    """Whether the results are the same but for the rounding of sums in another order."""
    if wanted is None or got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    wide, exact = got.double(), wanted.double()
    error = RELATIVE_ERROR[got.dtype]
    if not torch.allclose(wide, exact, rtol=error, atol=error * 0.1 * float(exact.abs().max())):
        return False
    is_narrow = got.dtype != torch.float32
    return not is_narrow or float((wide != exact).double().mean()) <= MOST_UNEQUAL


def first_line(error: Exception) -> str:
    """What a kernel's failure is told with."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
