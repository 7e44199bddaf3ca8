"""Make the Triton repositories and register the model as challenger."""

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
    generator: Input[Model] = None,
    features: Input[Model] = None,
    teachers: Input[list[Model]] = None,
    backbones: Input[list[Model]] = None,
) -> None:
    """Make the Triton repositories and register the model as challenger, with what it was made from; fails if MLflow does not take it.

    Args:
        onnx: the exported files.
        data: the data set of ingest.
        evaluation: the figures of all models.
        teacher: the name of that which the exported model builds on; none: it builds on none.
        backbone: the name of the recipe without labels that it builds on.
        settings: the sections of params.yaml that the stage reads.
        out: production and local model repositories.
        metrics: figures of the evaluation, by which KFP compares runs.
        generator: the teacher, where there is one.
        features: the backbone that was pretrained without labels, where there is one.
        teachers: the teachers of all recipes.
        backbones: what was pretrained without labels, by all recipes.
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
    with effect("publish") as done, lay_out(generator, features, teachers, backbones) as laid:
        run(params, **made, out=Path(out.path))
        lineage = {"data": Path(data.path), "teacher": laid / "teachers" / teacher, "features": laid / "backbones" / backbone}
        version = keep(params, **made, **lineage, repository=Path(out.path))
        done["version"] = f"{version} of {params.publish.name}" if version else "none, as tracking is off"
    out.metadata.update(facts(Path(out.path)))
    for name, value in read_stage(Path(evaluation.path))["metrics"].items():
        metrics.log_metric(name, value)
