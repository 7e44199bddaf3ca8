"""Fetch the inputs of the champion, for retraining."""

from kfp import dsl
from kfp.dsl import HTML, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch_champion(settings: dict, champion: Output[Model], page: Output[HTML]) -> str:
    """Fetch the champion's teacher, backbone, metrics and manifest from the registry; returns its version, "" if there is no champion yet.

    Args:
        settings: the group publish, for the model's name.
        champion: a folder for each of them; empty if there is no champion.
        page: model, version and metrics.
    """
    from pathlib import Path

    from dreamteacher.lifecycle.promotion import champion_facts, fetch_champion
    from dreamteacher.report.step import write_facts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.steps import announce

    announce("fetch-champion", settings)
    name, folder = restore_params(**settings).publish.name, Path(champion.path)
    version = fetch_champion(name, folder) or ""
    champion.metadata["version"] = version
    facts = champion_facts(folder) if version else {"name": name, "version": "no champion yet"}
    write_facts(Path(page.path), "fetch-champion", facts)
    return version
