"""Bring a run's outputs back to DVC."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def record(
    git_url: str,
    data_rev: str,
    overrides: list,
    run_id: str,
    data: Input[Dataset],
    teacher: Input[Model],
    features: Input[Model],
    interpreters: Input[list[Model]],
    labels: Input[list[Model]],
    fresh: Input[list[Model]],
    distilled: Input[list[Model]],
    mixed: Input[list[Model]],
    evaluation: Input[Model],
    onnx: Input[Model],
    triton: Input[Model],
) -> str:
    """Put the outputs where dvc.yaml names them, push them by DVC, and commit dvc.lock on the branch runs/RUN_ID.

    Args:
        git_url: repository of the project; empty: nothing is recorded.
        data_rev: the revision that the run began with.
        overrides: the run's settings, which the branch's params.yaml gets.
        run_id: of this run.
        data: output of ingest.
        teacher: output of train-teacher.
        features: output of distill-features.
        interpreters: outputs of train-interpreter.
        labels: outputs of distill-labels.
        fresh: models that started from scratch or ImageNet.
        distilled: models that started from the feature-distilled backbone.
        mixed: models that started from label distillation.
        evaluation: output of evaluate.
        onnx: output of export-onnx.
        triton: output of publish.
    """
    from pathlib import Path

    from dreamteacher.stages.record import run

    if not git_url:
        return ""
    single = [data, teacher, features, evaluation, onnx, triton]
    outputs = [Path(artifact.path) for artifact in [*single, *interpreters, *labels, *fresh, *distilled, *mixed]]
    return run(git_url=git_url, data_rev=data_rev, overrides=overrides, outputs=outputs, run_id=run_id)["branch"]
