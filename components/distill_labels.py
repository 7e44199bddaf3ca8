"""Distil the interpreter's soft labels for all pictures into backbone and head."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def distill_labels(
    data: Input[Dataset],
    teacher: Input[Model],
    features: Input[Model],
    interpreter: Input[Model],
    recipe: str,
    seed: int,
    settings: dict,
    changes: dict,
    out: Output[Model],
    page: Output[HTML],
) -> None:
    """Distil the interpreter's soft labels for all pictures into backbone and head.

    Args:
        data: the data set of ingest.
        teacher: the generator.
        features: the feature-distilled backbone to start from.
        interpreter: the interpreter of this seed.
        recipe: its name in the settings.
        seed: seed of weights, sample order and noise.
        settings: the sections of params.yaml that the stage reads.
        changes: the recipe's overrides.
        out: backbone, neck and head.
        page: metrics, settings, curves and pictures.
    """
    from pathlib import Path

    from dreamteacher.cluster.launch import launch
    from dreamteacher.report.step import fill_artifacts
    from dreamteacher.settings.file import restore_params

    params = restore_params(changes, **settings)
    inputs = {"data": data.path, "teacher": teacher.path, "features": features.path, "interpreter": interpreter.path}
    launch("distill-labels", params, inputs, out.path, recipe=recipe, seed=seed)
    fill_artifacts(Path(out.path), out, page)
