"""Train the generator on the unlabelled pictures."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_teacher(
    data: Input[Dataset],
    name: str,
    settings: dict,
    changes: dict,
    out: Output[Model],
    page: Output[HTML],
    champion: Input[Model] = None,
) -> None:
    """Train the generator on the unlabelled pictures.

    Args:
        data: the data set of ingest.
        name: name of the teacher in the settings.
        settings: the sections of params.yaml that the stage reads.
        changes: the teacher's overrides.
        out: the teacher's folder: weights, `teacher.json` with its taps, samples; for the name `none` (no teacher) one empty file.
        page: metrics, settings, curves and pictures.
        champion: output of fetch_champion; training continues from its teacher, if there is one.
    """
    from pathlib import Path

    from dreamteacher.cluster.launch import launch
    from dreamteacher.lifecycle.promotion import start_input
    from dreamteacher.report.step import fill_artifacts, write_facts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.settings.schema import NO_TEACHER

    if name == NO_TEACHER:
        Path(out.path).mkdir(parents=True)
        (Path(out.path) / "nothing").touch()
        write_facts(Path(page.path), "train-teacher", {"teacher": "none, as the method needs none"})
        return
    params = restore_params(changes, **settings)
    launch("train-teacher", params, {"data": data.path, **start_input(champion, "teacher")}, out.path, name=name)
    fill_artifacts(Path(out.path), out, page)
