"""Write one fine-tuned model and its backbone as ONNX, checked against torch."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def export_onnx(
    data: Input[Dataset],
    settings: dict,
    out: Output[Model],
    page: Output[HTML],
    distilled: Input[list[Model]] = None,
    mixed: Input[list[Model]] = None,
    fresh: Input[list[Model]] = None,
) -> None:
    """Write one fine-tuned model and its backbone as ONNX, checked against torch.

    Args:
        data: the data set of ingest.
        settings: the sections of params.yaml that the stage reads: which model to export, and export options.
        out: model.onnx and backbone.onnx.
        page: metrics, settings, curves and pictures.
        distilled: models fine-tuned from these backbones.
        mixed: models fine-tuned from label distillation.
        fresh: models fine-tuned from scratch or ImageNet.
    """
    from pathlib import Path

    from dreamteacher.cluster.artifacts import lay_out
    from dreamteacher.report.step import fill_artifacts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stages.export_onnx import run

    params = restore_params(**settings)
    with lay_out(fresh, distilled, mixed) as made:
        chosen = made / "finetuned" / params.export.init / str(params.export.seed)
        run(params, data=Path(data.path), finetuned=chosen, out=Path(out.path))
    fill_artifacts(Path(out.path), out, page)
