"""Write one HTML page about the run."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    data: Input[Dataset],
    teacher: Input[Model],
    features: Input[Model],
    interpreters: Input[list[Model]],
    labels: Input[list[Model]],
    distilled: Input[list[Model]],
    mixed: Input[list[Model]],
    evaluation: Input[Model],
    settings: dict,
    out: Output[Artifact],
    page: Output[HTML],
    fresh: Input[list[Model]] = None,
    drift: Input[Artifact] = None,
    verdict: Input[Artifact] = None,
) -> None:
    """Write one HTML page about the run: verdict, figures, curves, pictures, data, drift, cost, versions.

    Args:
        data: the data set of ingest.
        teacher: the generator.
        features: the feature-distilled backbone.
        interpreters: feature interpreters of the label recipes.
        labels: label-distilled backbones.
        distilled: models that started from the feature-distilled backbone.
        mixed: models that started from label distillation.
        evaluation: the figures of all models.
        settings: the sections of params.yaml that the stage reads.
        out: report.html.
        page: the same page.
        fresh: models that started from scratch or ImageNet.
        drift: of a retraining, what compare-data found.
        verdict: of a retraining, that of the gates.
    """
    import shutil
    from pathlib import Path

    from dreamteacher.report.step import facts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stages.report import PAGE, run
    from dreamteacher.versioning import lay_out

    single = [data, teacher, features, evaluation, *filter(None, [drift, verdict])]
    with lay_out([made.path for made in [*single, *interpreters, *labels, *(fresh or []), *distilled, *mixed]]) as made:
        run(restore_params(**settings), artifacts=made, out=Path(out.path))
    out.metadata.update(facts(Path(out.path)))
    Path(page.path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(out.path) / PAGE, page.path)
