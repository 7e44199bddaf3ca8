"""A synthetic run: outputs, metrics, curves and pictures of all stages without any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreamteacher.report.tables import write_table
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage

BAD = "<script>alert('class')</script>"  # as a user's class, and
BAD_FILE = "in/<img src=x onerror=alert(1)>.png"  # a user's file, may be called
FIGURES = {"scratch": (0.60, 0.66, 0.57), "features": (0.71, 0.75, 0.68), "mix": (0.55, 0.70, 0.59)}
FIGURE_OF = {"segmentation": ("miou", "iou"), "classification": ("top1", "accuracy"), "detection": ("ap", "ap")}


def settings(**changes: Any) -> Params:
    return Params.model_validate({"few_labels": 8} | changes)


class Maker:
    """Writes stage outputs below `artifacts`."""

    def __init__(self, artifacts: Path, task: str | None = "segmentation", classes: tuple[str, ...] = ("background", "cell")):
        self.artifacts, self.task, self.classes = artifacts, task, list(classes) if task else []
        self.random = np.random.default_rng(0)

    def output(self, place: str, stage: str, params: dict[str, Any], files: dict[str, Any], metrics: dict[str, float], *reads: str) -> None:
        """A complete output; of files .json get an object, .csv rows, .png a size (width, height)."""
        inputs = {name: self.artifacts / name for name in reads}
        with open_stage(stage, params=params, inputs=inputs, out=self.artifacts / place, overwrite=True) as opened:
            for name, content in files.items():
                path = opened.tmp / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix == ".json":
                    path.write_text(json.dumps(content))
                elif path.suffix == ".csv":
                    write_table(content, path)
                else:
                    pixels = self.random.integers(0, 255, (content[1] // 4, content[0] // 4, 3), dtype=np.uint8)
                    Image.fromarray(pixels).resize(content, Image.Resampling.BILINEAR).save(path)
            opened.metrics = metrics

    def data(self, refused: int = 2) -> None:
        counts = {"train": 100, "val": 20, "labelled_train": 100 if self.task else 0, "labelled_val": 20 if self.task else 0}
        by_split = {split: {name: 90 if i == 0 else 10 for i, name in enumerate(self.classes)} for split in ("train", "val")}
        report = {"pictures": 125, "quarantined": refused, "duplicates": 2, "leaks": 1, **counts, "summary": ["1 files were passed over"]}
        report |= {"labels_per_class_and_split": by_split, "pictures_per_class_and_split": by_split} if self.task else {}
        described = {"task": self.task, "classes": self.classes, "counts": counts, "hash": "d" * 64}
        rows = [{"path": BAD_FILE, "reason": "not a picture"}, *({"path": f"{i}.jpg", "reason": "cut short"} for i in range(refused - 1))]
        files = {"dataset.json": described, "report.json": report, "quarantine.csv": rows[:refused], "manifest.csv": []}
        self.output("data", "ingest", {"ingest": {"source": "pictures"}}, files, {"n_train": 100.0})

    def teacher(self, name: str = "own", kind: str = "ddpm") -> None:
        taps = [{"name": "up", "stride": stride, "channels": 64} for stride in (8, 16)]
        files = {
            "teacher.json": {"kind": kind, "resolution": 64, "taps": taps},
            "samples.png": (528, 132),
            "curves.csv": curve("loss", 1, 0.1),
        }
        self.output(f"teachers/{name}", "train-teacher", {"name": name, "teacher": {"kind": kind}}, files, {"loss": 0.1}, "data")

    def recipe(self, name: str = "features", method: str = "features", teacher: str | None = "own", explained: float = 0.43) -> None:
        learned = {"explained_variance": explained, "explained_within": 0.21, "ev_stride16": 0.36, "ev_stride8": 0.5} if teacher else {}
        rows = [row | ({"explained_variance": 0.1 * i} if teacher else {}) for i, row in enumerate(curve("loss", 2, 0.4))]
        params = {"recipe": name, "distill": {"method": method, "steps": 150}, "student": {"backbone": "resnet18"}}
        reads = ["data", f"teachers/{teacher}"] if teacher else ["data"]
        metrics = {"loss": 0.4, "embedding_spread": 0.5, "pictures": 4800.0, **learned}
        self.output(f"backbones/{name}", "distill-features", params, {"curves.csv": rows}, metrics, *reads)

    def label_recipe(self, name: str = "mix", seeds: tuple[int, ...] = (0, 1, 2)) -> None:
        for seed in seeds:
            params = {"recipe": name, "seed": seed}
            read = {"loss": 0.3, "val_miou": 0.52 + 0.02 * seed}
            self.output(f"interpreters/{name}/{seed}", "train-interpreter", params, {}, read, "data")
            self.output(f"backbones/{name}/{seed}", "distill-labels", params | {"labels": {"mode": "mix"}}, {}, {"loss": 0.5}, "data")

    def compared(self, figures: dict[str, tuple[float, ...]] = FIGURES) -> None:
        """The fine-tuned models and their comparison."""
        figure, kind = FIGURE_OF[str(self.task)]
        rows, reads, results = [], ["data"], {}
        for init, values in figures.items():
            for seed, value in enumerate(values):
                self.output(f"finetuned/{init}/{seed}", "finetune", {"init": init, "seed": seed, "finetune": {"steps": 80}}, {}, {}, "data")
                reads.append(f"finetuned/{init}/{seed}")
                frozen = {f"linear_{figure}": value - 0.2} if init in ("scratch", "features") and figure != "ap" else {}
                rows.append({"init": init, "seed": seed, figure: value, **{f"{kind}_{name}": value for name in self.classes}, **frozen})
            columns = [name for name in rows[-1] if name not in ("init", "seed")]
            results[init] = {f"{name}_{what}": rows[-1][name] if what == "mean" else 0.02 for name in columns for what in ("mean", "std")}
            results[init] |= {f"{figure}_mean": sum(values) / len(values), "n_seeds": len(values)}
        losses = [{"step": row["step"], **dict.fromkeys(figures, row["loss"])} for row in curve("loss", 1, 0.3)]
        files = {"metrics.json": results, "per_model.csv": rows, "finetune_loss.csv": losses, "results.png": (300, 300)}
        files |= {f"overlays/{i}.png": (1100, 250) for i in range(5)} | {"pca/features_0.png": (1100, 500)}
        self.output("evaluation", "evaluate", {"inits": list(figures)}, files, {}, *reads)

    def retrained(self, passed: bool = True) -> None:
        """Add the outputs of a retraining."""
        shifts = {"brightness": {"old": 0.3, "new": 0.5, "shift": 1.2, "by_chance": 0.1}}
        drift = {"counts": {"n_new": 40.0, "n_known": 100.0, "n_gone": 0.0}, "shifts": shifts}
        self.output("compare-data", "compare-data", {}, {"drift.json": drift}, {}, "data")
        checks = [{"name": "floor", "passed": passed, "value": 0.7, "limit": 0.5, "words": "miou 0.7000, at least 0.5"}]
        verdict = {"passed": passed, "reason": "", "champion": "3", "checks": checks}
        self.output("gate", "gate", {}, {"verdict.json": verdict}, {}, "data")

    def assessed(self) -> None:
        """As `dreamteacher assess` writes it."""
        summary = {
            "expect": "much",
            "words": "expect much from pretraining",
            "because": ["20 labels reach 61"],
            "warnings": ["set `few_labels`"],
        }
        help_more = [{"name": "more-labels", "words": "8 more labels", "gain": 0.031, "error": None}]
        prediction = {"features": {"low": 0.0, "expected": 0.05, "high": 0.12}, "mix": {"low": 0.02, "expected": 0.05, "high": 0.12}}
        costs = {"machine": "2 cores", "seconds": 100.0, "stages": [{"name": "finetune", "seconds": 75.0, "times": 9, "why": ""}]}
        facts = {
            "figure": "miou",
            "title": "mIoU",
            "scratch": 0.612,
            "prediction": prediction,
            "cost": costs,
            "verdict": {**summary, "help": help_more},
        }
        self.output("assess", "assess", {}, {"assess.json": facts}, {}, "data")

    def whole(self) -> Maker:
        for make in (self.data, self.teacher, self.recipe, self.label_recipe, self.compared):
            make()
        return self


def curve(column: str, first: float, last: float) -> list[dict[str, float]]:
    return [{"step": 25.0 * (i + 1), column: first + (last - first) * i / 5} for i in range(6)]
