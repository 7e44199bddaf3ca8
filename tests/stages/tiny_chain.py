"""The chain from pictures to task models on a tiny synthetic data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dreamteacher.data.dataset import ImageSet
from dreamteacher.settings.recipes import of_recipe
from dreamteacher.settings.schema import Params
from dreamteacher.stages import distill_features, distill_labels, evaluate, finetune, ingest, train_interpreter, train_teacher

TASKS = ("segmentation", "classification")
BRIEF = {"steps": 4, "batch_size": 4, "log_every": 2, "warmup_steps": 1, "checkpoint_every": 100, "precision": "fp32"}
INITS = ("scratch", "features", "labels", "mix")


def brief_params(source: Path, **changes: dict[str, Any]) -> Params:
    settings: dict[str, dict[str, Any]] = {
        "ingest": {"source": str(source), "min_side": 8},
        "teacher": BRIEF | {"resolution": 16, "T_train": 100, "samples": 2, "sample_steps": 3, "ema": 0.9},
        "student": {"backbone": "test_resnet", "width": 8},
        "distill": BRIEF | {"T": 10, "resolution": 32, "monitor_images": 3, "monitor_every": 3},
        "interpreter": BRIEF | {"T": 10, "resolution": 16, "width": 16},
        "labels": BRIEF | {"ema": 0.9},
        "finetune": BRIEF | {"resolution": 32},
        "teachers": {"teacher": {}},
        "recipes": {"features": {"teacher": "teacher"}},
        "label_recipes": {name: {"features": "features", "labels": {"mode": name}} for name in ("labels", "mix")},
        "compare": {"inits": list(INITS), "seeds": [0]},
        "evaluate": {"overlays": 1},  # a picture takes longer to draw than to learn from
        "export": {"init": "mix", "seed": 0},
    }
    return Params(few_labels=6, taps=[4, 8], **{name: settings.get(name, {}) | changes.get(name, {}) for name in settings | changes})


def scratch_metrics(params: Params, source: Path, folder: Path) -> dict[str, float]:
    """Ingest `source`, fine-tune from scratch with seed 0 and evaluate, with all outputs in `folder`; returns the metrics of scratch."""
    data, finetuned, metrics = folder / "data", folder / "finetuned", folder / "metrics.json"
    ingest.run(params, source=source, out=data)
    finetune.run(params, data=data, init="scratch", seed=0, out=finetuned / "scratch/0")
    inputs = {"data": data, "teachers": folder, "backbones": folder, "finetuned": finetuned}
    evaluate.run(params, **inputs, out=folder / "out", metrics=metrics, plots=folder / "plots")
    return json.loads(metrics.read_text())["scratch"]


def draw(task: str, folder: Path) -> Path:
    """14 train pictures, 10 of them labelled, and 4 for validation, of several sizes: a bright blob of one of two hues on faint noise."""
    generator = np.random.default_rng(5)
    for split, count in (("train", 14), ("val", 4)):
        for i in range(count):
            height, width = [(40, 48), (33, 60), (12, 40), (64, 20)][i % 4]
            kind, y, x = i % 2, generator.integers(2, height - 8), generator.integers(2, width - 8)
            pixels, mask = generator.integers(0, 30, (height, width, 3)), np.zeros((height, width), np.uint8)
            pixels[y : y + 8, x : x + 8, kind] += 150
            mask[y : y + 8, x : x + 8] = 1
            mask[:2] = 255
            labelled = split == "val" or i < 10
            below = f"{split}/images" if task == "segmentation" else f"{split}/{['green', 'red'][kind] if labelled else 'unlabelled'}"
            _save(pixels.astype(np.uint8), folder / below / f"{i:02}.png")
            if task == "segmentation" and labelled:
                _save(mask, folder / f"{split}/masks/{i:02}.png")
    if task == "segmentation":
        (folder / "classes.txt").write_text("background\nblob\n")
    return folder


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@dataclass
class Chain:
    """Finished stages: their folders below `root`, what they returned, which pictures they read (once trained, under
    another name), and the weights they began to train."""

    task: str
    source: Path
    root: Path
    params: Params
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    read: dict[str, set[str]] = field(default_factory=dict)
    begun: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def calls(self) -> dict[str, Callable[..., dict[str, float]]]:
        """What runs each stage, in order; `params` and `overwrite` may be given."""
        at = {name: self.root / name for name in ("data", "teacher", "features", "interpreter", "labels", "mix", *INITS)}
        data = {"data": at["data"], "params": self.params}
        seeded = {**data, "seed": 0}
        distilled = {**seeded, "teacher": at["teacher"], "interpreter": at["interpreter"], "features": at["features"]}
        calls: dict[str, Callable[..., dict[str, float]]] = {
            "data": partial(ingest.run, params=self.params, source=self.source, out=at["data"]),
            "teacher": partial(train_teacher.run, **data, out=at["teacher"]),
            "features": partial(distill_features.run, **data, teacher=at["teacher"], out=at["features"]),
            "interpreter": partial(train_interpreter.run, **seeded, teacher=at["teacher"], out=at["interpreter"]),
        }
        for name in ("labels", "mix"):
            params = of_recipe(self.params, name)
            calls[name] = partial(distill_labels.run, **{**distilled, "params": params}, recipe=name, out=at[name])
        for init in INITS:
            options = {} if init == "scratch" else {"backbone": at[init]}
            calls[f"finetune/{init}"] = partial(finetune.run, **seeded, **options, init=init, out=self.root / "finetune" / init)
        return calls

    def run(self) -> Chain:
        """All stages; the functions that read pictures and train are watched."""
        read_one, name, is_trained = ImageSet.read, "", False

        def read(images: ImageSet, index: int) -> Any:
            self.read[f"{name}, trained" if is_trained else name].add(images.names[index])
            return read_one(images, index)

        def watch(stage: ModuleType) -> Callable[..., Any]:
            train = stage.train

            def watched(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
                nonlocal is_trained
                self.begun[name] = {key: value.clone() for key, value in model.state_dict().items()}
                trained = train(model, *args, **kwargs)
                is_trained = True
                return trained

            return watched

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ImageSet, "read", read)
            for stage in (train_teacher, distill_features, train_interpreter, distill_labels, finetune):
                patch.setattr(stage, "train", watch(stage))
            for name, call in self.calls().items():
                self.read |= {name: set(), f"{name}, trained": set()}
                is_trained = False
                self.metrics[name] = call()
        return self
