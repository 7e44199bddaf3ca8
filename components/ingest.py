"""Check the pictures of a data version and make one data set of them."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    pictures: Input[Dataset],
    settings: dict,
    out: Output[Dataset],
    page: Output[HTML],
) -> None:
    """Check the pictures of a data version and make one data set of them.

    Args:
        pictures: output of fetch_data.
        settings: the sections of params.yaml that the stage reads; with retrain, newly arrived pictures are added.
        out: the data set: manifest, shards, quarantine, report.
        page: metrics, settings, curves and pictures.
    """
    from pathlib import Path

    from dreamteacher.report.step import fill_artifacts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stages.ingest import run

    place = Path(pictures.path) / pictures.metadata["name"]
    params = restore_params(**settings)
    run(params, source=place, incoming=params.retrain.incoming, out=Path(out.path))
    fill_artifacts(Path(out.path), out, page)
