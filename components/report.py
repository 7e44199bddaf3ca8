"""Write one HTML page about the run."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    data: Input[Dataset],
    evaluation: Input[Model],
    settings: dict,
    out: Output[Artifact],
    page: Output[HTML],
    teachers: Input[list[Model]] = None,
    backbones: Input[list[Model]] = None,
    interpreters: Input[list[Model]] = None,
    labels: Input[list[Model]] = None,
    fresh: Input[list[Model]] = None,
    distilled: Input[list[Model]] = None,
    mixed: Input[list[Model]] = None,
    drift: Input[Artifact] = None,
    verdict: Input[Artifact] = None,
) -> None:
    """Write one HTML page about the run: verdict, metrics, curves, pictures, data, drift, cost, versions.

    Args:
        data: the data set of ingest.
        evaluation: the metrics of all models.
        settings: the sections of params.yaml that the stage reads.
        out: report.html.
        page: the same page.
        teachers: the generators, of all recipes.
        backbones: backbones pretrained without labels, of all recipes.
        interpreters: feature interpreters of the label recipes.
        labels: label-distilled backbones.
        fresh: models fine-tuned from scratch or ImageNet.
        distilled: models fine-tuned from these backbones.
        mixed: models fine-tuned from label distillation.
        drift: for a retraining, the output of compare-data.
        verdict: for a retraining, the output of gate.
    """
    import shutil
    from pathlib import Path

    from dreamteacher.cluster.artifacts import lay_out
    from dreamteacher.report.step import facts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stages.report import PAGE, run

    single = data, evaluation, drift, verdict
    with lay_out(*single, teachers, backbones, interpreters, labels, fresh, distilled, mixed) as made:
        run(restore_params(**settings), artifacts=made, out=Path(out.path))
    out.metadata.update(facts(Path(out.path)))
    Path(page.path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(out.path) / PAGE, page.path)
