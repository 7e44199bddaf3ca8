"""Fine-tune for the task on the few labels, from one initialisation."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finetune(
    data: Input[Dataset],
    init: str,
    seed: int,
    settings: dict,
    changes: dict,
    out: Output[Model],
    page: Output[HTML],
    backbone: Input[Model] = None,
) -> None:
    """Fine-tune for the task on the few labels, from one initialisation.

    Args:
        data: the data set of ingest.
        init: scratch, imagenet, or the name of a recipe.
        seed: seed of the few labels and the random weights.
        settings: the sections of params.yaml that the stage reads.
        changes: the recipe's overrides (of student).
        out: the task model.
        page: metrics, settings, curves and pictures.
        backbone: the recipe's backbone.
    """
    from pathlib import Path

    from dreamteacher.cluster.launch import launch
    from dreamteacher.report.step import fill_artifacts
    from dreamteacher.settings.file import restore_params

    params = restore_params(changes, **settings)
    inputs = {"data": data.path} | ({"backbone": backbone.path} if backbone else {})
    launch("finetune", params, inputs, out.path, init=init, seed=seed)
    fill_artifacts(Path(out.path), out, page)
