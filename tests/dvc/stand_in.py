"""`dreamteacher STAGE` with a stub for the stage's body; everything else is real."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dreamteacher import cli, stage_commands
from dreamteacher.settings.schema import Params
from dreamteacher.stage import digest_of, open_stage

READS = {
    "ingest": ["ingest"],
    "train-teacher": ["seed", "teacher"],
    "distill-features": ["seed", "taps", "student", "distill"],
    "train-interpreter": ["few_labels", "taps", "interpreter"],
    "distill-labels": ["taps", "student", "distill", "labels"],
    "finetune": ["few_labels", "student", "finetune"],
    "evaluate": ["few_labels", "compare", "evaluate"],
    "export-onnx": ["export"],
    "publish": ["publish"],
    "report": ["compare"],
}
FILES = {
    "finetune_loss.csv": "step,scratch,features,mix\n1,3,2,1\n",
    "teacher_loss/own.csv": "step,loss\n1,2\n",
    "distill_quality/features.csv": "step,explained_variance\n1,0.5\n",
    "results.png": "",
    "overlays/0.png": "",
}


def main(words: list[str]) -> int:
    """Besides its output, the command leaves a line in ran.log."""
    name = words[0]

    def run(
        params: Params, *, out: Path, overwrite: bool, metrics: Path | None = None, plots: Path | None = None, **options: Any
    ) -> dict[str, float]:
        options.pop("artifacts", None)
        inputs = {key: value for key, value in options.items() if isinstance(value, Path)}
        with Path("ran.log").open("a") as log:
            print(" ".join(words), file=log)
        settings = {**params.section(*READS[name]), **{key: value for key, value in options.items() if key not in inputs}}
        files = {**FILES, "metrics.json": json.dumps({"mix": {"miou_mean": params.finetune.lr}})} if plots else {}
        with open_stage(name, params=settings, inputs=inputs, out=out, overwrite=overwrite) as stage:
            (stage.tmp / "model.safetensors").write_text(name + str(options.get("seed")))
            if name == "distill-features":
                (stage.tmp / "taught_by.json").write_text(digest_of(inputs["teacher"]))
            for file, text in files.items():
                (stage.tmp / file).parent.mkdir(exist_ok=True)
                (stage.tmp / file).write_text(text)
        if metrics and plots:  # as the stage itself does
            for file in files:
                place = metrics if file == "metrics.json" else plots / file
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes((out / file).read_bytes())
        return {}

    stage_commands.import_module = lambda _: SimpleNamespace(run=run)
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
