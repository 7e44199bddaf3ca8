"""Say what is new in a data set, and how far it is from what was known."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare_data(
    data: Input[Dataset],
    champion: Input[Model],
    settings: dict,
    out: Output[Artifact],
    page: Output[HTML],
) -> NamedTuple("Found", [("enough", bool), ("words", str)]):
    """Say what is new in a data set, and how far it is from what was known.

    Args:
        data: the data set of ingest.
        champion: what fetch_champion got.
        settings: the sections of params.yaml that the stage reads: the size of crops, and how many new pictures are enough.
        out: names of the new pictures, drift of brightness, size and embedding.
        page: figures and settings.
    """
    from pathlib import Path

    from dreamteacher.lifecycle.promotion import part
    from dreamteacher.report.step import tell
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stages.compare_data import run

    params = restore_params(**settings)
    folders = {"before": part(champion.path, "known"), "features": part(champion.path, "features")}
    found = int(run(params, data=Path(data.path), out=Path(out.path), **folders)["n_new"])
    tell(Path(out.path), out, page)
    least = params.retrain.min_new_images
    enough = found >= least
    words = f"{found} new pictures" if enough else f"nothing new: {found} new pictures, fewer than retrain.min_new_images = {least}"
    print(words)
    return enough, words
