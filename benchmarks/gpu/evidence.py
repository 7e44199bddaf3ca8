"""What a well-trained teacher is worth: the product's own stages on a public set, scaled to the minutes that are left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks import datasets
from benchmarks.gpu.cases import Case, distillation, finetuning, generator
from benchmarks.gpu.speed import measure
from dreamteacher.data.dataset import ImageSet
from dreamteacher.settings.schema import Params
from dreamteacher.stages import distill_features, finetune, ingest, train_teacher
from dreamteacher.tasks.model import load_task_model
from dreamteacher.tasks.scoring import score
from dreamteacher.training.processes import this_process

SIDES = {"cifar10": 32, "tinyimagenet100": 64}
SHARES = {"teacher": 0.55, "distill": 0.25, "finetune": 0.2}  # of the seconds
STUDENTS = ("resnet50", "vit_small_patch16_224")
SEEDS, LABELS = 2, 10  # draws of labels, and labels of each class
TEACHER_BATCH, BATCH = 512, 256


def run(name: str, source: Path, work: Path, seconds: float, dry: bool = False) -> dict[str, Any]:
    """Teacher, students and fine-tuning within about `seconds`; a stage that is done is not repeated (`work` holds what was made).

    Args:
        name: of the set, one of SIDES.
        source: what `benchmarks.datasets` reads, or the output of ingest.
        work: folder for all that is made.
        seconds: for training and measuring; ingest comes before.
        dry: a few steps of tiny networks.
    """
    data, side = prepare(name, source, work), 32 if dry else SIDES[name]
    begin = time.monotonic()
    students = ("test_resnet",) if dry else STUDENTS
    params = settings(side, seconds, students[0], len(ImageSet(data, "train").classes), dry)
    made: dict[str, Any] = {"set": name, "settings": params.section("teacher", "distill", "finetune", "few_labels"), "students": {}}
    made["teacher"] = train_teacher.run(params, data=data, out=work / "teacher/own")
    for student in students:
        own = params.model_copy(update={"student": params.student.model_copy(update={"backbone": student})})
        place = work / student
        figures = distill_features.run(own, data=data, teacher=work / "teacher/own", out=place / "features")
        rows = []
        for seed in range(1 if dry else SEEDS):
            for init in ("scratch", "features"):
                out = place / f"{init}-{seed}"
                finetune.run(own, data=data, init=init, seed=seed, out=out, backbone=place / init if init == "features" else None)
                top1 = score(load_task_model(out), ImageSet(data, "val"), BATCH, this_process().device)[0]["top1"]
                rows.append({"init": init, "seed": seed, "top1": top1})
        made["students"][student] = {"distillation": figures, "rows": rows}
        made["seconds"] = time.monotonic() - begin
    return made


def prepare(name: str, source: Path, work: Path) -> Path:
    """The data set, ingested."""
    if (source / "dataset.json").exists():
        return source
    pictures = work / "pictures"
    if not pictures.exists():
        datasets.write(name, source, pictures)
    ingest.run(Params(), source=pictures, out=work / "data")
    return work / "data"


def settings(side: int, seconds: float, student: str, classes: int, dry: bool) -> Params:
    """Steps are as many as fit, by a short measurement of each kind of step here."""
    size = "tiny" if dry else "small"

    def steps(part: str, case: Case, runs: int) -> int:
        return 2 if dry else max(50, round(SHARES[part] * seconds / runs * measure(case)["img_per_s"] / case.batch))

    teach = steps("teacher", Case("teacher", side, TEACHER_BATCH, generator("edm", size)), 1)
    distil = steps("distill", Case("distillation", side, BATCH, distillation(size, student)), len(STUDENTS))
    tune = steps("finetune", Case("fine-tuning", side, BATCH, finetuning("classification", student)), 2 * SEEDS * len(STUDENTS))
    batch, teacher_batch = (4, 4) if dry else (BATCH, TEACHER_BATCH)
    return Params.model_validate(
        {
            "few_labels": LABELS * classes,
            "taps": [4, 8],
            "teacher": {
                "kind": "edm",
                "size": size,
                "resolution": side,
                "steps": teach,
                "batch_size": teacher_batch,
                "lr": 4e-4,
                "samples": 16 if dry else 64,
                "sample_steps": 2 if dry else 18,
                "sample_every": 10**9,
                "checkpoint_every": 10**9,
            },
            "student": {"width": 8 if dry else 128},
            "distill": {
                "resolution": side,
                "steps": distil,
                "batch_size": batch,
                "T": 50,
                "monitor_images": 16 if dry else 256,
                "checkpoint_every": 10**9,
            },
            "finetune": {"resolution": side, "steps": tune, "batch_size": batch, "checkpoint_every": 10**9},
        }
    )
