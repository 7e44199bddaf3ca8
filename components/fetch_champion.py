"""Get what the served model was made from."""

from kfp import dsl
from kfp.dsl import Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch_champion(publish: dict, champion: Output[Model]) -> str:
    """Get the champion's teacher, backbone, figures and manifest from the registry; returns its version, "" when there is none yet.

    Args:
        publish: settings of the group publish: the model's name.
        champion: a folder for each of them; empty when there is no champion.
    """
    from pathlib import Path

    from dreamteacher.params_file import restore_params
    from dreamteacher.serving.promotion import fetch_champion

    version = fetch_champion(restore_params(publish=publish).publish.name, Path(champion.path)) or ""
    champion.metadata["version"] = version
    return version
