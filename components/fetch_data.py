"""Fetch the pictures of one data version."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch_data(
    git_url: str,
    data_version: str,
    source: str,
    pictures: Output[Dataset],
    page: Output[HTML],
) -> None:
    """Fetch the pictures of a data version with git and DVC.

    Args:
        git_url: repository of the project, or a folder that all steps can read.
        data_version: the commit that changed the pictures last, as find_commit names it.
        source: their path in the project.
        pictures: the pictures.
        page: the data version.
    """
    from pathlib import Path

    from dreamteacher.files import walk
    from dreamteacher.report.step import write_facts
    from dreamteacher.stages.fetch_data import run
    from dreamteacher.steps import announce

    announce("fetch-data", {"data_version": data_version, "source": source})
    found = run(git_url=git_url, data_version=data_version, source=source, out=Path(pictures.path))
    pictures.metadata.update(found)
    files = sum(1 for _ in walk(pictures.path))
    write_facts(Path(page.path), "fetch-data", {**found, "source": source, "files": files})
