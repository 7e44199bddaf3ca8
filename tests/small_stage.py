"""A trivial stage with one output file."""

from __future__ import annotations

from pathlib import Path

from dreamteacher.stage import open_stage

OUT = Path("artifacts/teachers/own")


def make(
    text: str = "weights", *, out: Path = OUT, params: dict | None = None, inputs: dict | None = None, overwrite: bool = False
) -> bool:
    """Run it; returns whether it was executed."""
    with open_stage("train-teacher", params=params or {"lr": 1e-3}, inputs=inputs or {}, out=out, overwrite=overwrite) as stage:
        if not stage.done:
            (stage.tmp / "unet").mkdir()
            (stage.tmp / "unet/model.safetensors").write_text(text)
            stage.metrics["loss"] = 0.25
        return not stage.done
