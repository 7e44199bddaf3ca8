"""Compare all fine-tuned models on the untouched validation split."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    data: Input[Dataset],
    settings: dict,
    out: Output[Model],
    page: Output[HTML],
    teachers: Input[list[Model]] = None,
    backbones: Input[list[Model]] = None,
    distilled: Input[list[Model]] = None,
    mixed: Input[list[Model]] = None,
    fresh: Input[list[Model]] = None,
) -> None:
    """Compare all fine-tuned models on the untouched validation split.

    Args:
        data: the data set of ingest.
        settings: the sections of params.yaml that the stage reads.
        out: metrics of all models and means over seeds, curves, overlays.
        page: metrics, settings, curves and pictures.
        teachers: the generators, of all recipes.
        backbones: backbones pretrained without labels, of all recipes.
        distilled: models fine-tuned from these backbones.
        mixed: models fine-tuned from label distillation.
        fresh: models fine-tuned from scratch or ImageNet.
    """
    from pathlib import Path

    from dreamteacher.cluster.artifacts import lay_out
    from dreamteacher.report.step import fill_artifacts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stages.evaluate import run

    params = restore_params(**settings)
    with lay_out(teachers, backbones, distilled, mixed, fresh) as made:
        inputs = {name: made / name for name in ("teachers", "backbones", "finetuned")}
        run(params, data=Path(data.path), **inputs, out=Path(out.path), metrics=made / "metrics.json", plots=made / "plots")
    fill_artifacts(Path(out.path), out, page)
