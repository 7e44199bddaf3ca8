"""Push a run's outputs to DVC."""

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
    """Copy the outputs to their paths in dvc.yaml, push them with DVC, and commit dvc.lock on the branch runs/RUN_ID.

    Args:
        git_url: repository of the project.
        commit: commit of the run's settings; empty if the project is a folder, for which nothing is recorded.
        overrides: the run's settings, written to the branch's params.yaml.
        run_id: of this run.
        data: output of ingest.
        evaluation: output of evaluate.
        onnx: output of export-onnx.
        triton: output of publish.
        report: output of report.
        page: branch and commit of the record.
        teachers: outputs of train-teacher.
        backbones: outputs of distill-features.
        interpreters: outputs of train-interpreter.
        labels: outputs of distill-labels.
        fresh: models fine-tuned from scratch or ImageNet.
        distilled: models fine-tuned from these backbones.
        mixed: models fine-tuned from label distillation.
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
