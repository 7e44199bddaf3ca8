"""Defaults that depend on preset, teacher.kind and teacher.size, in this order of precedence. They apply to settings that are not set.

The values of `demo` and `tiny` are the defaults in pretraining.py.

Plain numbers, apart from the networks themselves (teachers/unet.py), because reading settings must not import torch.
"""

from __future__ import annotations

from typing import Any

LEVELS = {"tiny": 5, "mini": 4, "small": 4, "adm-256": 6}  # teacher.size -> levels of the U-Net, at strides 1, 2, 4, ...

# Values of `teacher.kind`:
SIZED_KINDS = ("ddpm", "edm", "random", "pixels")  # the settings determine decoder levels and noise steps; else a folder does
UNTRAINED_KINDS = ("random", "pixels")  # controls
GENERATE_ONLY_KINDS = ("stylegan2", "biggan", "icgan")  # generate pictures, but cannot encode a given one

# Defaults of a teacher.size.
BY_TEACHER_SIZE: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {},
    # For an hour on a GPU: a fifth of the FLOPs of `small`.
    "mini": {
        "teacher": {"batch_size": 256, "lr": 5e-4, "steps": 20_000, "ema": 0.9995, "sample_every": 5000},
        "distill": {"batch_size": 64, "lr": 2e-3, "steps": 4000, "warmup_steps": 100, "monitor_every": 250},
    },
    # Learning rate, batch size and EMA as for published DDPMs on 32 and 64 px.
    "small": {
        "teacher": {"batch_size": 128, "lr": 1e-4, "steps": 100_000, "ema": 0.9999, "sample_every": 5000},
        "distill": {"batch_size": 64, "lr": 1e-3, "steps": 10_000, "warmup_steps": 100, "monitor_every": 250},
    },
    # Tab 16 and 17. The steps are 300 epochs (teacher) and 200 (distillation) of the paper's 70,000 BDD100K pictures; for the learning rate
    # of distillation the paper gives two values, 2e-4 and 4e-3.
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

# Defaults of a teacher.kind, for any size: Adam, learning rate and EMA of StyleGAN2-ADA.
BY_TEACHER_KIND: dict[str, dict[str, dict[str, Any]]] = {
    "stylegan2": {"teacher": {"lr": 2e-3, "betas": (0.0, 0.99), "clip": None, "warmup_steps": 0, "ema": 0.999}},
}

# Defaults of a `preset`. docs/recipes.md lists the source of each value of `paper`, how contradictions were resolved, and the evidence for
# `best`. The budget (resolution, batch size, steps) comes from teacher.size, which `paper` sets to adm-256; what the paper trains longer
# than adm-256 does is in BY_PRESET_AND_SIZE.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {},
    "paper": {
        "teacher": {"kind": "ddpm", "size": "adm-256", "prediction": "epsilon", "T_train": 1000, "weight_decay": 0.0},
        "student": {"backbone": "resnet50", "finest_stride": 4, "width": 256, "neck": "fpn-ppm"},
        "distill": {
            "method": "features",
            "encoding": "stochastic",
            "T": 50,
            "whitening": "layernorm",
            "objectives": {"mse": 1.0, "at": 10.0},
            "margin": 0,
            "optimizer": "adamw",
            "lr": 4e-3,
            "weight_decay": 0.05,
            "betas": (0.9, 0.95),
            "ema": None,
        },
        "interpreter": {
            "encoding": "stochastic",
            "T": 50,
            "width": 256,
            "dropout": 0.1,
            "dice_weight": 3.0,
            "mirror": True,
            "optimizer": "adamw",
            "lr": 4e-3,
            "weight_decay": 0.05,
            "betas": (0.9, 0.95),
        },
        "labels": {"mode": "mix", "tau": 4.0, "label_weight": 1.0, "optimizer": "adamw", "lr": 4e-3, "weight_decay": 0.05},
        "finetune": {"backbone_lr_scale": 1.0, "layer_decay": 1.0, "head_steps": 0, "carry_neck": False},
    },
    "best": {
        "teacher": {"kind": "edm"},
        "student": {"neck": "fpn-ppm"},
        "distill": {
            "method": "features",
            "encoding": "stratified",
            "strata": [10, 110, 210, 310],
            "whitening": "standardize",
            "objectives": {"cosine": 0.9, "smooth_l1": 0.1, "global": 1.0},
            "ema": 0.999,
        },
        "labels": {"tau": 1.0},
    },
}

BY_PRESET_AND_SIZE: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    # Tab 17, BDD100K: 600 epochs of 70,000 pictures by 256, of which 30 warm up.
    ("paper", "adm-256"): {
        "distill": {"steps": 164_000, "warmup_steps": 8_200},
        "labels": {"steps": 164_000, "warmup_steps": 8_200, "batch_size": 256, "accumulate": 8},
    },
}


def preset_defaults(preset: str, *, kind: str | None, size: str | None, default_kind: str, default_size: str) -> dict[str, dict[str, Any]]:
    """{group: {setting: value}} for settings that are not set.

    `kind` and `size` are teacher.kind and teacher.size, None if not set: then the preset's value applies, else `default_kind` and
    `default_size`.
    """
    of_preset = PRESETS[preset]
    kind = kind or of_preset.get("teacher", {}).get("kind", default_kind)
    size = size or of_preset.get("teacher", {}).get("size", default_size)
    by_precedence = (BY_TEACHER_SIZE[size], BY_TEACHER_KIND.get(kind, {}), of_preset, BY_PRESET_AND_SIZE.get((preset, size), {}))
    defaults: dict[str, dict[str, Any]] = {}
    for groups in by_precedence:  # the last takes precedence
        for group, values in groups.items():
            defaults.setdefault(group, {}).update(values)
    return defaults


def decoder_strides(size: str) -> list[int]:
    """Strides of the decoder levels of a teacher of this teacher.size, fine to coarse."""
    return [2**level for level in range(LEVELS[size])]


def auto_taps(offered: list[int]) -> list[int]:
    """The strides that `taps: auto` selects of `offered`, the strides of a teacher's decoder levels: the coarsest four of 2 to 32.

    The paper uses 4 to 32 (Sec 3.1). Levels beyond 32, which some teachers have, correspond to no level of a backbone. If no level is in
    that range, all are selected.
    """
    return [stride for stride in sorted(offered) if 1 < stride <= 32][-4:] or sorted(offered)


def by_teacher_size(group: str, name: str) -> str:
    """The defaults of a setting by teacher.size, for its description: "by teacher.size; small: 64, adm-256: 256"."""
    values = {size: groups.get(group, {}).get(name) for size, groups in BY_TEACHER_SIZE.items()}
    return "by teacher.size; " + ", ".join(
        f"{size}: {value if isinstance(value, str) else format(value, 'g')}" for size, value in values.items() if value is not None
    )
