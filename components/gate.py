"""Decide whether the new model may become champion."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(
    data: Input[Dataset],
    onnx: Input[Model],
    evaluation: Input[Model],
    champion: Input[Model],
    settings: dict,
    out: Output[Artifact],
    page: Output[HTML],
) -> bool:
    """Decide whether the new model may become champion: metric floor, same validation split, no regression, parity, latency.

    Args:
        data: the data set of ingest.
        onnx: the exported files.
        evaluation: the metrics of all models.
        champion: output of fetch_champion.
        settings: the sections of params.yaml that the stage reads: tolerance, size and thresholds.
        out: the verdict with every check.
        page: the result of each check.
    """
    from pathlib import Path

    from dreamteacher.lifecycle.promotion import part
    from dreamteacher.report.step import fill_artifacts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stages.gate import run

    made = {"data": Path(data.path), "onnx": Path(onnx.path), "evaluation": Path(evaluation.path)}
    there = Path(champion.path) if part(champion.path, "evaluation") else None
    passed = run(restore_params(**settings), **made, champion=there, out=Path(out.path))["passed"]
    fill_artifacts(Path(out.path), out, page)
    return bool(passed)
