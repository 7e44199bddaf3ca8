"""Distil the generator's decoder features into a backbone."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def distill_features(
    data: Input[Dataset],
    teacher: Input[Model],
    recipe: str,
    settings: dict,
    changes: dict,
    out: Output[Model],
    page: Output[HTML],
    champion: Input[Model] = None,
) -> None:
    """Distil the generator's decoder features into a backbone.

    Args:
        data: the data set of ingest.
        teacher: the generator; without stage.json if the method needs none.
        recipe: its name in the settings.
        settings: the sections of params.yaml that the stage reads.
        changes: the recipe's overrides.
        out: the backbone (timm folder) and its feature regressor.
        page: metrics, settings, curves and pictures.
        champion: output of fetch_champion; training continues from its backbone, if there is one.
    """
    from pathlib import Path

    from dreamteacher.cluster.launch import launch
    from dreamteacher.lifecycle.promotion import start_input
    from dreamteacher.report.step import fill_artifacts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stage import RECORD

    params = restore_params(changes, **settings)
    inputs = {"data": data.path, **start_input(champion, "features")}
    if (Path(teacher.path) / RECORD).exists():
        inputs["teacher"] = teacher.path
    launch("distill-features", params, inputs, out.path, recipe=recipe)
    fill_artifacts(Path(out.path), out, page)
