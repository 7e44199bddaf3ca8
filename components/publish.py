"""Create the Triton repositories and register the model as challenger."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish(
    onnx: Input[Model],
    data: Input[Dataset],
    evaluation: Input[Model],
    teacher: str,
    backbone: str,
    settings: dict,
    out: Output[Model],
    metrics: Output[Metrics],
    teachers: Input[list[Model]] = None,
    backbones: Input[list[Model]] = None,
) -> None:
    """Create the Triton repositories and register the model as challenger, with the inputs of retraining.

    Fails if MLflow does not store it.

    Args:
        onnx: the exported files.
        data: the data set of ingest.
        evaluation: the metrics of all models.
        teacher: name of the exported model's teacher, or none.
        backbone: name of the exported model's recipe without labels.
        settings: the sections of params.yaml that the stage reads.
        out: production and local model repositories.
        metrics: metrics of the evaluation, for comparing runs in KFP.
        teachers: the teachers of all recipes.
        backbones: backbones pretrained without labels, of all recipes.
    """
    from pathlib import Path

    from dreamteacher.cluster.artifacts import lay_out
    from dreamteacher.report.step import facts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stage import read_stage
    from dreamteacher.stages.publish import keep, run
    from dreamteacher.steps import effect

    params = restore_params(**settings)
    made = {"onnx": Path(onnx.path), "evaluation": Path(evaluation.path)}
    with effect("publish") as done, lay_out(teachers, backbones) as laid:
        run(params, **made, out=Path(out.path))
        lineage = {"data": Path(data.path), "teacher": laid / "teachers" / teacher, "features": laid / "backbones" / backbone}
        version = keep(params, **made, **lineage, repository=Path(out.path))
        done["version"] = f"{version} of {params.publish.name}" if version else "none, as tracking is off"
    out.metadata.update(facts(Path(out.path)))
    for name, value in read_stage(Path(evaluation.path))["metrics"].items():
        metrics.log_metric(name, value)
