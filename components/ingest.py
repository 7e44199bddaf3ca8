"""Check the pictures of a data version and make one data set of them."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    source: Input[Dataset],
    ingest: dict,
    out: Output[Dataset],
    metrics: Output[Metrics],
    page: Output[HTML],
    retrain: dict = {},  # noqa: B006
) -> None:
    """Check the pictures of a data version and make one data set of them.

    Args:
        source: the pictures, as fetch_data got them.
        ingest: settings of the group ingest.
        out: the data set: manifest, shards, quarantine, report.
        metrics: the stage's figures.
        page: figures, settings, curves and pictures.
        retrain: settings of the group retrain, if what has arrived joins the pictures.
    """
    from pathlib import Path

    from dreamteacher.params_file import restore_params
    from dreamteacher.report.step import tell
    from dreamteacher.stages.ingest import run

    place = Path(source.path) / source.metadata["name"]
    params = restore_params(ingest=ingest, retrain=retrain)
    run(params, source=place, incoming=params.retrain.incoming, out=Path(out.path))
    tell(Path(out.path), out, metrics, page)
