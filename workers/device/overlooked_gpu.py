"""The overlooked GPU: why `--device auto` means the CPU on a machine that has a GPU.

A driver or a build of torch that is missing would otherwise show as a daemon that is merely slow.
"""

from collections.abc import Mapping
from pathlib import Path

NVIDIA, DISPLAY_CLASS = "0x10de", "0x03"
"""The vendor of a PCI device, and how the class of a GPU begins."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


def why_overlooked(
    cuda_version: str | None, environ: Mapping[str, str], root: Path = Path("/")
) -> str | None:
    """Why torch uses no GPU although there is one, in a line; None if there is none.

    `cuda_version` is that of torch's build. `root` is the root of the file system.
    """
    driver, devices = root / "proc/driver/nvidia", sorted((root / "dev").glob("nvidia[0-9]*"))
    if not devices and not driver.exists() and not _has_pci_gpu(root):
        return None
    if environ.get(VISIBLE) in ("", "-1"):
        return f"{VISIBLE} hides it"
    if cuda_version is None:
        return "torch was installed without CUDA: install torch's CUDA build"
    if not driver.exists():
        return "the NVIDIA driver is not loaded: install it, and check it with `nvidia-smi`"
    if not devices:
        return "this container has no access to it: run it with `docker run --gpus all`"
    return (
        f"torch (CUDA {cuda_version}) cannot use it: `nvidia-smi` shows the driver, which may be "
        "too old for this CUDA"
    )


def _has_pci_gpu(root: Path) -> bool:
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == NVIDIA and kind.startswith(DISPLAY_CLASS):
            return True
    return False
