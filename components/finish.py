"""Report how a run ended, and clean up."""

from kfp import dsl
from kfp.dsl import HTML, Output, PipelineTaskFinalStatus

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(status: PipelineTaskFinalStatus, pipeline: str, page: Output[HTML]) -> str:
    """Report how the run ended and which external effects happened; delete its remaining TrainJobs and, if it succeeded, its folder.

    The outputs of steps are kept, and so are the checkpoints of a run that did not succeed, for Retry.

    Args:
        status: filled in by KFP.
        pipeline: pretrain or retrain.
        page: how the run ended, the external effects of publish, promote and record, and what was deleted.
    """
    import os
    from pathlib import Path

    from dreamteacher.cluster.launch import remove_run_folder
    from dreamteacher.report.step import write_facts
    from dreamteacher.steps import announce, effects, forget_effects, how_run_ended

    announce("finish", {"pipeline": pipeline})
    done = effects(pipeline)
    ended, over = how_run_ended(status.state, done)
    facts = {"run": status.pipeline_job_resource_name, "ended": ended}
    if status.error_message:
        facts["reason"] = status.error_message
    facts |= done
    if os.environ.get("DREAMTEACHER_TRAINJOBS"):  # of terminated steps
        from dreamteacher.cluster import trainjob

        left = trainjob.delete_of_run(trainjob.api_client(), os.environ["DREAMTEACHER_RUN"], os.environ["DREAMTEACHER_NAMESPACE"])
        facts["TrainJobs deleted"] = ", ".join(left) or "none were left"
    if over:
        forget_effects()
        if removed := remove_run_folder():
            facts["checkpoints"] = removed
    for key, words in facts.items():
        print(f"{key}: {words}")
    write_facts(Path(page.path), "finish", facts)
    return status.state
