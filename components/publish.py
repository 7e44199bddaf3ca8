"""Make the Triton repositories and register the model as challenger."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish(
    onnx: Input[Model],
    data: Input[Dataset],
    teacher: Input[Model],
    features: Input[Model],
    evaluation: Input[Model],
    settings: dict,
    out: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Make the Triton repositories and register the model as challenger, with what it was made from; fails if MLflow does not take it.

    Args:
        onnx: the exported files.
        data: the data set of ingest.
        teacher: the generator.
        features: the feature-distilled backbone.
        evaluation: the figures of all models.
        settings: the sections of params.yaml that the stage reads.
        out: production and local model repositories.
        metrics: figures of the evaluation, by which KFP compares runs.
    """
    from pathlib import Path

    from dreamteacher.report.step import facts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stage import read_stage
    from dreamteacher.stages.publish import keep, run
    from dreamteacher.steps import effect

    params = restore_params(**settings)
    made = {"onnx": Path(onnx.path), "evaluation": Path(evaluation.path)}
    with effect("publish") as done:
        run(params, **made, out=Path(out.path))
        lineage = {"data": Path(data.path), "teacher": Path(teacher.path), "features": Path(features.path)}
        version = keep(params, **made, **lineage, repository=Path(out.path))
        done["version"] = f"{version} of {params.publish.name}" if version else "none, as tracking is off"
    out.metadata.update(facts(Path(out.path)))
    for name, value in read_stage(Path(evaluation.path))["metrics"].items():
        metrics.log_metric(name, value)
