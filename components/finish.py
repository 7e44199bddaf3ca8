"""What is said and cleared away when a run has ended, whether well or not."""

from kfp import dsl
from kfp.dsl import PipelineTaskFinalStatus

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(status: PipelineTaskFinalStatus) -> str:
    """Say how the run ended, and delete the TrainJobs that it left.

    The outputs of steps that were done stay, and a new run takes them from the cache.

    Args:
        status: filled in by KFP.
    """
    import os

    words = f"{status.pipeline_job_resource_name}: {status.state}"
    if status.error_message:
        words += f": {status.error_message}"
    print(words)
    if os.environ.get("DREAMTEACHER_TRAINJOBS"):  # of steps that were stopped for good
        from dreamteacher import trainjob

        left = trainjob.delete_of_run(trainjob.api_client(), os.environ["DREAMTEACHER_RUN"], os.environ["DREAMTEACHER_NAMESPACE"])
        print(f"TrainJobs deleted: {', '.join(left) or 'none were left'}")
    return status.state
