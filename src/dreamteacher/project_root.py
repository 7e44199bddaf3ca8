"""The folder of the project, where tracking and checkpoints are kept."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from dreamteacher.errors import UserError


def project_folder() -> Path:
    """The project's folder: the current directory or, if DVC runs an experiment in a temporary copy, the original project.

    `dvc exp run --temp` and the workers of `dvc queue` work in a clone below PROJECT/.dvc/tmp, which is deleted afterwards with all that
    DVC does not track; DVC_ROOT names PROJECT.
    """
    here = Path.cwd()
    if root := os.environ.get("DVC_ROOT"):
        dvc_root = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
        if dvc_root and dvc_root.is_relative_to(Path(root, ".dvc/tmp").resolve()):
            return Path(root) / here.relative_to(dvc_root)
    return Path()


def refuse_subfolder() -> None:
    """Refuse to run in a subfolder of a project, where commands would silently use default settings and find no records.

    Raises:
        UserError: the current directory is in a project but not its folder.
    """
    here = Path.cwd()
    if (here / "params.yaml").exists():
        return
    for folder in here.parents:
        if (folder / "params.yaml").exists() and (folder / "dvc.yaml").exists():
            raise UserError(
                f"{here} lies in a project and has no params.yaml of its own; change to the project: cd {shlex.quote(str(folder))}"
            )
