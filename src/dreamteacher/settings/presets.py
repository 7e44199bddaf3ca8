"""What follows teacher.size wherever the settings leave it open. The values of `tiny`, the demo, are the defaults in pretraining.py.

Plain numbers, apart from the networks themselves (teachers/unet.py), because reading settings must not import torch.
"""

from __future__ import annotations

from typing import Any

LEVELS = {"tiny": 5, "small": 4, "adm-256": 6}  # of the U-Net, at strides 1, 2, 4, ...

SIZED = ("ddpm", "edm", "random", "pixels")  # kinds whose decoder levels and noise steps follow from the settings, not from a folder
DREAMING = ("stylegan2", "biggan", "icgan")  # kinds that make pictures of their own and cannot encode others

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {},
    # Rate, batch and averaging are those of DDPMs of this kind on 32 and 64 px.
    "small": {
        "teacher": {"batch_size": 128, "lr": 1e-4, "steps": 100_000, "ema": 0.9999, "sample_every": 5000},
        "distill": {"batch_size": 64, "lr": 1e-3, "steps": 10_000, "warmup_steps": 100, "monitor_every": 250},
    },
    # Tab 16 and 17. The steps are 300 epochs (teacher) and 200 (distillation) of the paper's 70,000 BDD100K pictures; for the rate of
    # distillation the paper gives two figures, 2e-4 and 4e-3.
    "adm-256": {
        "teacher": {
            "prediction": "epsilon",
            "resolution": 256,
            "batch_size": 256,
            "accumulate": 16,
            "lr": 1e-4,
            "steps": 80_000,
            "ema": 0.9999,
            "sample_every": 2000,
        },
        "distill": {
            "resolution": 256,
            "batch_size": 256,
            "accumulate": 8,
            "lr": 1e-3,
            "steps": 55_000,
            "warmup_steps": 100,
            "monitor_every": 250,
        },
        "interpreter": {"resolution": 256},
    },
}

# What a kind of teacher wants otherwise, whatever its size: Adam, rate and averaging of StyleGAN2-ADA.
BY_KIND: dict[str, dict[str, dict[str, Any]]] = {
    "stylegan2": {"teacher": {"lr": 2e-3, "betas": (0.0, 0.99), "clip": None, "warmup_steps": 0, "ema": 0.999}},
}


def strides(size: str) -> list[int]:
    """Of the decoder levels of a teacher of this size, fine to coarse."""
    return [2**level for level in range(LEVELS[size])]


def auto_taps(offered: list[int]) -> list[int]:
    """What `taps: auto` means for a teacher with decoder levels at these strides: the coarsest four of 2 to 32 (Sec 3.1: 4 to 32).

    No backbone has a level beyond 32, where some teachers have one. Where nothing lies in that range, all that is offered.
    """
    return [stride for stride in sorted(offered) if 1 < stride <= 32][-4:] or sorted(offered)


def by_size(group: str, name: str) -> str:
    """What the sizes other than `tiny` say of a setting, for its description: "by teacher.size; small: 64, adm-256: 256"."""
    values = {size: groups.get(group, {}).get(name) for size, groups in PRESETS.items()}
    return "by teacher.size; " + ", ".join(
        f"{size}: {value if isinstance(value, str) else format(value, 'g')}" for size, value in values.items() if value is not None
    )
