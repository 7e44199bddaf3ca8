"""A retraining in the order of the pipeline, on tiny pictures."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_chain import BRIEF, brief_params

from dreamteacher.lifecycle.promotion import fetch_champion, part
from dreamteacher.settings.schema import Params
from dreamteacher.stages import (
    compare_data,
    distill_features,
    distill_labels,
    evaluate,
    export_onnx,
    finetune,
    gate,
    ingest,
    promote,
    publish,
    train_interpreter,
    train_teacher,
)

TRAINED, UNTRAINED = {"steps": 100, "lr": 1e-2}, {"steps": 1, "lr": 1e-8}  # of finetune: the first is the better model on any machine


def settings(source: Path, **changes) -> Params:
    params = brief_params(
        source,
        distill={"steps": 20, "lr": 3e-3},
        finetune=BRIEF | TRAINED | {"resolution": 32} | changes.pop("finetune", {}),
        compare={"inits": ["mix"], "seeds": [0]},
    )
    retrain = {"min_new_images": 5, "metric_floor": 0.3, "latency_ms": 5000, "latency_runs": 2} | changes
    return Params.model_validate(params.model_dump() | {"retrain": retrain, "export": {"size": 32}, "publish": {"name": "blobs"}})


def arrive(folder: Path, numbers: range, brightness: int = 0) -> None:
    """New pictures, `brightness` brighter than those of `draw`."""
    folder.mkdir(exist_ok=True)
    for i in numbers:
        pixels = np.random.default_rng(1000 + i).integers(brightness, brightness + 30, (40, 48, 3))
        pixels[8:16, i % 30 : i % 30 + 8, i % 2] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


@dataclass
class Round:
    """The stages of a retraining, with outputs below `root`."""

    root: Path
    source: Path
    incoming: Path
    params: Params

    def run(self) -> promote.Outcome | None:
        """None: too few new pictures."""
        at = {name: self.root / name for name in ("data", "drift", "teacher", "features", "evaluation", "onnx", "triton", "gate")}
        fetched = self.root / "champion"
        champion = fetched if fetch_champion(self.params.publish.name, fetched) else None
        ingest.run(self.params, source=self.source, incoming=self.incoming, out=at["data"])
        old = {"before": part(str(fetched), "known"), "features": part(str(fetched), "features")}
        self.drift = compare_data.run(self.params, data=at["data"], out=at["drift"], **old)
        if self.drift["n_new"] < self.params.retrain.min_new_images:
            return None
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DREAMTEACHER_TRACKING", "off")  # of what is registered alone
            start = {name: {"start": champion / name} if champion else {} for name in ("teacher", "features")}
            made = {name: at[name] for name in ("data", "teacher")}
            train_teacher.run(self.params, data=at["data"], out=at["teacher"], **start["teacher"])
            distill_features.run(self.params, **made, out=at["features"], **start["features"])
            for seed in self.params.compare.seeds:
                places = [self.root / kind / str(seed) for kind in ("interpreters", "mix")]
                train_interpreter.run(self.params, **made, seed=seed, out=places[0])
                options = {**made, "features": at["features"], "interpreter": places[0], "seed": seed}
                distill_labels.run(self.params, **options, out=places[1])
                options = {"data": at["data"], "init": "mix", "seed": seed, "backbone": places[1]}
                finetune.run(self.params, **options, out=self.root / "finetuned/mix" / str(seed))
            places = {"metrics": self.root / "metrics.json", "plots": self.root / "plots"}
            places |= {"teachers": self.root, "backbones": self.root}
            evaluate.run(self.params, data=at["data"], finetuned=self.root / "finetuned", out=at["evaluation"], **places)
            export_onnx.run(self.params, data=at["data"], finetuned=self.root / "finetuned/mix/0", out=at["onnx"])
        publish.run(self.params, onnx=at["onnx"], evaluation=at["evaluation"], out=at["triton"])
        publish.keep(self.params, **made, features=at["features"], onnx=at["onnx"], evaluation=at["evaluation"], repository=at["triton"])
        gate.run(self.params, data=at["data"], onnx=at["onnx"], evaluation=at["evaluation"], champion=champion, out=at["gate"])
        return self.decide()

    def decide(self) -> promote.Outcome:
        return promote.run(self.params, gate=self.root / "gate", onnx=self.root / "onnx")

    def verdict(self) -> dict:
        return json.loads((self.root / "gate" / "verdict.json").read_text())
