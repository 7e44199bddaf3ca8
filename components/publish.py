"""Make the Triton repositories and register the model as challenger."""

from kfp import dsl
from kfp.dsl import HTML, Input, Metrics, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish(
    onnx: Input[Model],
    evaluation: Input[Model],
    publish: dict,
    out: Output[Model],
    metrics: Output[Metrics],
    page: Output[HTML],
) -> None:
    """Make the Triton repositories and register the model as challenger.

    Args:
        onnx: the exported files.
        evaluation: the figures of all models.
        publish: settings of the group publish.
        out: production and local model repositories.
        metrics: the stage's figures.
        page: figures, settings, curves and pictures.
    """
    from pathlib import Path

    from dreamteacher.params_file import restore_params
    from dreamteacher.report.step import tell
    from dreamteacher.stages.publish import run

    run(restore_params(publish=publish), onnx=Path(onnx.path), evaluation=Path(evaluation.path), out=Path(out.path))
    tell(Path(out.path), out, metrics, page)
