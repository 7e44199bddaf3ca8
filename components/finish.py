"""What is said and cleared away when a run has ended, whether well or not."""

from kfp import dsl
from kfp.dsl import HTML, Output, PipelineTaskFinalStatus

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(status: PipelineTaskFinalStatus, page: Output[HTML]) -> str:
    """Say how the run ended; delete the TrainJobs that it left and, if it succeeded, its folder on the volume.

    The outputs of steps stay. So do the checkpoints of a run that failed: Retry goes on from them.

    Args:
        status: filled in by KFP.
        page: how the run ended, and what was cleared away.
    """
    import os
    import shutil
    from pathlib import Path

    from dreamteacher.report.step import write_facts

    told = {"run": status.pipeline_job_resource_name, "ended": status.state}
    if status.error_message:
        told["reason"] = status.error_message
    if os.environ.get("DREAMTEACHER_TRAINJOBS"):  # of steps that were stopped for good
        from dreamteacher import trainjob

        left = trainjob.delete_of_run(trainjob.api_client(), os.environ["DREAMTEACHER_RUN"], os.environ["DREAMTEACHER_NAMESPACE"])
        told["TrainJobs deleted"] = ", ".join(left) or "none were left"
    volume, run = (os.environ.get(f"DREAMTEACHER_{name}") for name in ("RUNS", "RUN"))
    if status.state == "SUCCEEDED" and volume and run:
        folder = Path(volume, run)
        shutil.rmtree(folder, ignore_errors=True)  # the run is as good without it
        told["checkpoints"] = f"{folder} {'could not be removed' if folder.exists() else 'is removed'}"
    for key, words in told.items():
        print(f"{key}: {words}")
    write_facts(Path(page.path), "finish", told)
    return status.state
