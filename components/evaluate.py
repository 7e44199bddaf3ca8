"""Compare all fine-tuned models on the untouched validation split."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    data: Input[Dataset],
    teacher: Input[Model],
    features: Input[Model],
    distilled: Input[list[Model]],
    mixed: Input[list[Model]],
    settings: dict,
    out: Output[Model],
    page: Output[HTML],
    fresh: Input[list[Model]] = None,
) -> None:
    """Compare all fine-tuned models on the untouched validation split.

    Args:
        data: the data set of ingest.
        teacher: the generator.
        features: the feature-distilled backbone.
        distilled: models that started from the feature-distilled backbone.
        mixed: models that started from label distillation.
        settings: the sections of params.yaml that the stage reads.
        out: figures of all models and means over seeds, curves, overlays.
        page: figures, settings, curves and pictures.
        fresh: models that started from scratch or ImageNet.
    """
    from pathlib import Path

    from dreamteacher.report.step import tell
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stages.evaluate import run
    from dreamteacher.versioning import lay_out

    params = restore_params(**settings)
    with lay_out([model.path for model in [teacher, features, *(fresh or []), *distilled, *mixed]]) as made:
        inputs = {name: made / name for name in ("teachers", "backbones", "finetuned")}
        run(params, data=Path(data.path), **inputs, out=Path(out.path), metrics=made / "metrics.json", plots=made / "plots")
    tell(Path(out.path), out, page)
