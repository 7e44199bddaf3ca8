"""Get what the served model was made from."""

from kfp import dsl
from kfp.dsl import HTML, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch_champion(settings: dict, champion: Output[Model], page: Output[HTML]) -> str:
    """Get the champion's teacher, backbone, figures and manifest from the registry; returns its version, "" when there is none yet.

    Args:
        settings: of the group publish: the model's name.
        champion: a folder for each of them; empty when there is no champion.
        page: which model and version it is, and its figures.
    """
    from pathlib import Path

    from dreamteacher.lifecycle.promotion import about, fetch_champion
    from dreamteacher.report.step import write_facts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.steps import announce

    announce("fetch-champion", settings)
    name, folder = restore_params(**settings).publish.name, Path(champion.path)
    version = fetch_champion(name, folder) or ""
    champion.metadata["version"] = version
    facts = about(folder) if version else {"name": name, "version": "no champion yet"}
    write_facts(Path(page.path), "fetch-champion", facts)
    return version
