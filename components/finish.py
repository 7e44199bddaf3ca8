"""What is said when a run has ended, whether well or not."""

from kfp import dsl
from kfp.dsl import PipelineTaskFinalStatus

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(status: PipelineTaskFinalStatus) -> str:
    """Say how the run ended; the outputs of steps that were done stay, and a new run takes them from the cache.

    Args:
        status: filled in by KFP.
    """
    words = f"{status.pipeline_job_resource_name}: {status.state}"
    if status.error_message:
        words += f": {status.error_message}"
    print(words)
    return status.state
