"""The overlooked GPU: what keeps torch from using a GPU is named."""

from pathlib import Path

import pytest

from workers.device.overlooked_gpu import why_overlooked


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a machine with a GPU on its PCI bus and nothing else."""
    add_pci(tmp_path, "0000:01:00.0", "0x10de", "0x030200")
    return tmp_path


def add_pci(root: Path, address: str, vendor: str, kind: str) -> None:
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")


def add_driver(root: Path, *devices: str) -> None:
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "dev").mkdir()
    for device in devices:
        (root / "dev" / device).touch()


def test_without_a_gpu_nothing_is_overlooked(tmp_path: Path) -> None:
    assert why_overlooked(None, {}, tmp_path) is None
    add_pci(tmp_path, "0000:00:02.0", "0x8086", "0x030000")  # a GPU of another vendor
    add_pci(tmp_path, "0000:00:03.0", "0x10de", "0x020000")  # its network adapter
    assert why_overlooked(None, {}, tmp_path) is None


def test_a_torch_without_cuda_is_named(root: Path) -> None:
    assert "without CUDA" in str(why_overlooked(None, {}, root))


def test_a_missing_driver_is_named(root: Path) -> None:
    assert "driver is not loaded" in str(why_overlooked("12.8", {}, root))


def test_a_container_without_access_is_named(root: Path) -> None:
    add_driver(root)
    assert "--gpus all" in str(why_overlooked("12.8", {}, root))


def test_a_driver_that_torch_cannot_use_is_named(tmp_path: Path) -> None:
    add_driver(tmp_path, "nvidia0", "nvidiactl")
    assert "too old" in str(why_overlooked("12.8", {}, tmp_path))


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_the_variable_that_hides_it_is_named(root: Path, hidden: str) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": hidden}
    assert why_overlooked("12.8", environ, root) == "CUDA_VISIBLE_DEVICES hides it"
