"""Propose settings for a set of pictures on a machine, and estimate their time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from dreamteacher.project.cost import START, picture_seconds
from dreamteacher.project.machine import Machine, Speed
from dreamteacher.project.survey import Survey
from dreamteacher.settings.presets import PRESETS
from dreamteacher.settings.schema import Params
from dreamteacher.tasks.base import get_task

HOURS = {"cpu": 1.0, "cuda": 8.0}  # default budget
# Shares of the budget, over all seeds. Most goes to the generator, since only what it has learned can be distilled.
SHARES = {"teacher": 0.5, "distill": 0.2, "interpreter": 0.07, "labels": 0.08, "finetune": 0.15}
PASSES = {"teacher": 2000, "distill": 1000, "interpreter": 300, "labels": 300, "finetune": 200}  # maximum epochs; more gain nothing
LEAST = {"teacher": 500, "distill": 200, "interpreter": 200, "labels": 100, "finetune": 200}  # minimum steps

MARGIN = 8  # pixels; of a crop of less than 64 it would leave one cell of the coarsest tap

# Settings of a preset that depend on the machine instead.
BUDGET = {"teacher": ("size",), "student": ("backbone", "finest_stride")}


@dataclass(frozen=True)
class Proposal:
    """values: groups of settings as params.yaml holds them. hours: what the whole takes, about. budget: what it should take."""

    values: dict[str, Any]
    hours: float
    budget: float


def sizes(found: Survey, machine: Machine, preset: str = "demo") -> dict[str, Any]:
    """The settings that depend on the pictures and the kind of machine, without steps; settings of `preset` are left to it."""
    gpu = machine.device == "cuda"
    natural = found.short_side
    of_task = {"classification": 224 if gpu else 64, "segmentation": 512 if gpu else 256, "detection": 512 if gpu else 256}
    largest = of_task.get(found.task or "", 256 if gpu else 128)
    soft_labels = not found.task or get_task(found.task).classifies is not None
    stored = min(natural, largest)
    side = max(32, stored // 32 * 32)
    # In small crops each position is near a border. Trained on 64 px, a network found objects in empty areas of
    # pictures (nuclei, each with its outline, 10 labels, 480 steps of 8: AP 1 in per cent; on 128 px 240 steps of 4: 14).
    crop = min(side, 256 if gpu else 128 if found.task == "detection" else 64)
    distilled = min(crop, 128 if gpu else 64)
    labelled = found.labelled
    own_val = 0.1 if labelled >= 1000 else 0.2 if labelled >= 200 else 0.3
    ingest: dict[str, Any] = {"source": found.source, "short_side": None if natural <= largest else largest}
    if not found.has_val and found.labels is not None:
        ingest["val_fraction"] = own_val if found.task else 0.0
    values: dict[str, Any] = {
        "preset": preset,
        "seed": 0,
        "few_labels": None,
        "few_labels_by": "random",
        "taps": "auto",
        "teachers": {"own": {}},
        "recipes": {"features": {"teacher": "own"}},
        "label_recipes": {"mix": {"features": "features"}} if soft_labels else {},
        "ingest": ingest,
        "teacher": {"size": "small" if gpu else "tiny", "resolution": min(crop, 64)},
        "student": {"backbone": "resnet50" if gpu else "resnet18", "finest_stride": 4 if stored > 128 else 2, "width": 256 if gpu else 32},
        "distill": {"resolution": distilled, "augment": "natural"} | ({"margin": MARGIN} if distilled >= 64 else {}),
        "interpreter": {"width": 256 if gpu else 64, "batch_size": 16, "lr": 2e-3, "resolution": min(crop, 64)},
        "labels": {"batch_size": 32, "lr": 2e-3},
        "finetune": {"resolution": crop, "augment": "natural", "batch_size": 16 if gpu else 8},
        "compare": {"inits": ["scratch", "features", *(["mix"] * soft_labels)], "seeds": [0, 1, 2]},
        "evaluate": {"overlays": 8},
        "export": {"init": "features", "seed": 0, "size": min(side, 512)},
        "publish": {"name": "dreamteacher"},
    }
    if gpu and machine.memory < 40e9:
        values["teacher"]["accumulate"] = 2 if machine.memory > 20e9 else 4
    if found.complete and found.train < 4 * Params().distill.monitor_images:
        values["distill"]["monitor_images"] = max(1, found.train // 8)
    for group, named in PRESETS[preset].items():
        kept = BUDGET.get(group, ())
        values[group] = {key: value for key, value in values.get(group, {}).items() if key in kept or key not in named}
    return values


def propose(found: Survey, machine: Machine, speed: Speed, values: dict[str, Any], hours: float | None = None) -> Proposal:
    """`values` of `sizes` with as many steps as fit into `hours` (default: HOURS), but at least the minimum."""
    hours = hours or HOURS[machine.device]
    budget = 3600 * hours
    choices = [[0, 1, 2], [0]] if found.may_have_labels else [[0]]
    for seeds in choices:
        values = values | {"compare": values["compare"] | {"seeds": seeds}}
        steps, seconds = _steps(found, Params.model_validate(values), speed, budget)
        if seconds <= 1.3 * budget:
            break
    for group, count in steps.items():
        values = values | {group: values[group] | {"steps": count} | ({"warmup_steps": count // 10} if count < 1000 else {})}
    return Proposal(values, seconds / 3600, hours)


def _steps(found: Survey, params: Params, speed: Speed, budget: float) -> tuple[dict[str, int], float]:
    """({group: steps}, seconds of all stages together)."""
    seeds, inits = len(params.compare.seeds), len(params.compare.inits)
    with_labels = seeds * len(params.label_recipes)
    often = {"teacher": 1, "distill": 1, "interpreter": with_labels, "labels": with_labels, "finetune": seeds * inits}
    if not found.may_have_labels:
        often |= {"interpreter": 0, "labels": 0, "finetune": 0}

    cost = picture_seconds(params, speed)
    pictures = max(1, found.train)
    seen = {"teacher": pictures, "distill": pictures, "labels": pictures} | dict.fromkeys(
        ("interpreter", "finetune"), max(1, found.labelled or pictures)
    )
    val = (found.val or found.pictures * params.ingest.val_fraction) if found.may_have_labels else 0
    whole = (min(found.short_side, params.ingest.short_side or found.short_side) / params.distill.resolution) ** 2
    fixed = START * (3 + sum(often.values())) + val * whole * cost["finetune"] * (seeds * (inits + 2)) / 2
    share = max(budget - fixed, budget / 4) / sum(SHARES[group] for group, times in often.items() if times)
    steps, total = {}, fixed
    for group, times in often.items():
        batch = getattr(params, group).batch_size
        most = max(LEAST[group], PASSES[group] * seen[group] / batch)
        if found.labels is None or not found.complete:
            most = float("inf")
        fitting = SHARES[group] * share / (times * cost[group] * batch) if times else 2 * LEAST[group]
        steps[group] = _two_digits(min(max(fitting, LEAST[group]), most))
        total += times * steps[group] * cost[group] * batch
    return steps, total


def _two_digits(value: float) -> int:
    """Rounded to two significant digits: 1234 to 1200."""
    return int(float(f"{value:.1e}"))


COMMENTS = {
    "preset": "values of settings not set here; paper: to the letter; best: ranked above it by evidence",
    "few_labels": "number of labelled train pictures to use, drawn by seed; null: all",
    "few_labels_by": "how they are drawn; class, cluster: covering all classes or kinds of pictures",
    "taps": "decoder levels of the generator to learn from, by stride",
    "source": "a folder, a list of paths, WebDataset shards, or an address of them",
    "short_side": "larger pictures are downscaled to it, pixels; null: not downscaled",
    "val_fraction": "share of the pictures held out for validation, as the source has no train/ and val/",
    "size": "tiny: for CPUs; mini: for an hour of a GPU; small: for many; adm-256: the paper's 256 px, for several GPUs",
    "accumulate": "accumulation parts of a batch, for this GPU's memory",
    "backbone": "any timm model with a feature pyramid",
    "finest_stride": "2 for small pictures or objects of few pixels; the paper's 4 for others",
    "width": "channels of the neck",
    "monitor_images": "train pictures held out to measure distillation",
    "margin": "pixels at the crops' border excluded from the loss, where the generator's features depend on the border",
    "augment": "natural (roads, faces, products): horizontal flips; overhead (microscopy, satellite): all turns; no-flip (text); none",
    "own": "a teacher, with overrides of `teacher`; there may be several",
    "features": "a backbone pretrained without labels: its teacher, and overrides of taps, student, distill",
    "mix": "a backbone pretrained with labels: its base recipe, and overrides of interpreter, labels",
    "inits": "also: imagenet",
    "seeds": "each draws its own random weights, and few labels if few_labels is set",
    "overlays": "pictures drawn with their predictions",
    "init": "initialisation of the served model; choose the best of the comparison",
    "name": "model name in Triton and MLflow",
}
OF_GROUP = {
    "distill": {"augment": "as finetune.augment, for methods that compare views, such as simclr"},
    "teacher": {"resolution": "side of the training crops, pixels"},
    "finetune": {"resolution": "side of the training crops, pixels"},
    "export": {"size": "side of the example input, pixels"},
    "student": {"width": "channels of the neck; the paper's is 256"},
    "interpreter": {"width": ""},
}


def write(proposal: Proposal, heading: list[str]) -> str:
    """The text of params.yaml, with `heading` as its first lines and comments on less obvious settings."""
    lines = [f"# {line}".rstrip() for line in heading]
    for group, value in proposal.values.items():
        if isinstance(value, dict) and value:
            lines += ["", f"{group}:", *(_line(key, each, "  ", OF_GROUP.get(group, {})) for key, each in value.items())]
        else:
            lines.append(_line(group, value, "", {}))
    return "\n".join([*lines, ""])


def _line(key: str, value: Any, indent: str, comments: dict[str, str]) -> str:
    plain = f"{key}: {yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6).strip()[1:-1]}"
    comment = comments.get(key, COMMENTS.get(key, ""))
    return f"{indent}{plain:<24} # {comment}" if comment else f"{indent}{plain}"
