"""Find the new pictures of a data set, and measure their drift from the champion's data."""

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
    """Find the new pictures of a data set, and measure their drift from the champion's data.

    Args:
        data: the data set of ingest.
        champion: output of fetch_champion.
        settings: the sections of params.yaml that the stage reads: the crop size and the minimum number of new pictures.
        out: names of the new pictures, drift of brightness, size and embedding.
        page: metrics and settings.
    """
    from pathlib import Path

    from dreamteacher.lifecycle.promotion import part
    from dreamteacher.report.step import fill_artifacts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stages.compare_data import run
    from dreamteacher.steps import skip_effects

    params = restore_params(**settings)
    folders = {"before": part(champion.path, "known"), "features": part(champion.path, "features")}
    found = int(run(params, data=Path(data.path), out=Path(out.path), **folders)["n_new"])
    fill_artifacts(Path(out.path), out, page)
    least = params.retrain.min_new_images
    enough = found >= least
    words = f"{found} new pictures" if enough else f"nothing new: {found} new pictures, fewer than retrain.min_new_images = {least}"
    if not enough:
        skip_effects("retrain", words)
    print(words)
    return enough, words
