"""Which machine figures are of, and what its GPU can do at most."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from dreamteacher.git_access import output_of
from dreamteacher.limits import cores

# Dense bf16 matrix products on tensor cores, TFLOP/s, by what `torch.cuda.get_device_name` begins with; NVIDIA's data sheets: H100 and H200
# tensor core GPU (half of what they say "with sparsity"), A100, L40S, L4.
PEAKS = {
    "NVIDIA H200": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100": 989.0,
    "NVIDIA A100": 312.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L4": 121.0,
}
PACKAGES = ("torch", "torchvision", "timm", "diffusers", "accelerate", "triton")


def peak(name: str) -> float | None:
    """TFLOP/s of a GPU of this name; None where it is not in the table."""
    return next((value for start, value in PEAKS.items() if name.startswith(start)), None)


def describe(device: torch.device) -> dict[str, str]:
    """The machine, its driver, versions and commit."""
    found = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU",
        "cores": str(cores()),
        "python": platform.python_version(),
        "cuda": str(torch.version.cuda),
        "commit": output_of("git", "rev-parse", "--short", "HEAD") or "unknown",
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found
