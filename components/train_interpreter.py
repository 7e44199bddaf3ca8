"""Train the feature interpreter on the few labels."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_interpreter(
    data: Input[Dataset],
    teacher: Input[Model],
    recipe: str,
    seed: int,
    settings: dict,
    changes: dict,
    out: Output[Model],
    page: Output[HTML],
) -> None:
    """Train the feature interpreter on the few labels.

    Args:
        data: the data set of ingest.
        teacher: the generator.
        recipe: its name in the settings.
        seed: seed of the few labels and the weights.
        settings: the sections of params.yaml that the stage reads.
        changes: the recipe's overrides.
        out: the interpreter.
        page: metrics, settings, curves and pictures.
    """
    from pathlib import Path

    from dreamteacher.cluster.launch import launch
    from dreamteacher.report.step import fill_artifacts
    from dreamteacher.settings.file import restore_params

    params = restore_params(changes, **settings)
    launch("train-interpreter", params, {"data": data.path, "teacher": teacher.path}, out.path, recipe=recipe, seed=seed)
    fill_artifacts(Path(out.path), out, page)
