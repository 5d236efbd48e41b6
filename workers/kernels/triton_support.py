"""Where Triton's kernels can run; it is imported only where that is asked."""

import os

import torch


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, which needs no GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def obstacle(device: torch.device) -> str | None:
    """Why kernels in Triton cannot run on this device, or None: they can."""
    try:
        import triton  # noqa: F401 (torch's CPU builds do without)
    except ImportError as error:
        return f"Triton is not installed ({error.name})"
    if device.type != "cuda" and not is_interpreted():
        return "it runs on GPUs only"
    return age(device)


def age(device: torch.device) -> str | None:
    """Why a GPU is too old for kernels that need Ampere or later, or None."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 (Ampere) or later"
    return None
