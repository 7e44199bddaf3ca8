"""Bring a run's outputs back to DVC."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def record(
    git_url: str,
    commit: str,
    overrides: list,
    run_id: str,
    data: Input[Dataset],
    evaluation: Input[Model],
    onnx: Input[Model],
    triton: Input[Model],
    report: Input[Artifact],
    page: Output[HTML],
    teachers: Input[list[Model]] = None,
    backbones: Input[list[Model]] = None,
    interpreters: Input[list[Model]] = None,
    labels: Input[list[Model]] = None,
    fresh: Input[list[Model]] = None,
    distilled: Input[list[Model]] = None,
    mixed: Input[list[Model]] = None,
) -> str:
    """Put the outputs where dvc.yaml names them, push them by DVC, and commit dvc.lock on the branch runs/RUN_ID.

    Args:
        git_url: repository of the project.
        commit: of the run's settings; empty where the project is a folder, of which nothing is recorded.
        overrides: the run's settings, which the branch's params.yaml gets.
        run_id: of this run.
        data: output of ingest.
        evaluation: output of evaluate.
        onnx: output of export-onnx.
        triton: output of publish.
        report: output of report.
        page: where the run is recorded.
        teachers: outputs of train-teacher.
        backbones: outputs of distill-features.
        interpreters: outputs of train-interpreter.
        labels: outputs of distill-labels.
        fresh: models that started from scratch or ImageNet.
        distilled: models that started from what was pretrained without labels.
        mixed: models that started from label distillation.
    """
    from pathlib import Path

    from dreamteacher.cluster.artifacts import stage_outputs
    from dreamteacher.cluster.launch import remove_run_folder
    from dreamteacher.report.step import write_facts
    from dreamteacher.stages.record import run
    from dreamteacher.steps import effect

    if not commit:
        write_facts(Path(page.path), "record", {"recorded": "nothing, as the project is a folder and no git repository"})
        return ""
    single = data, evaluation, onnx, triton, report
    outputs = stage_outputs(*single, teachers, backbones, interpreters, labels, fresh, distilled, mixed)
    with effect("record") as done:
        recorded = run(git_url=git_url, commit=commit, overrides=overrides, outputs=outputs, run_id=run_id)
        done.update(recorded)
    write_facts(Path(page.path), "record", {**recorded, "starts at": commit, "outputs": len(outputs), "settings": ", ".join(overrides)})
    remove_run_folder()
    return recorded["branch"]
