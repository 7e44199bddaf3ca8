"""The folder of the project, where tracking and checkpoints are kept."""

from __future__ import annotations

import os
from pathlib import Path


def project_folder() -> Path:
    """The current directory, or the one it stands for where DVC runs an experiment in a throw-away copy of the project.

    `dvc exp run --temp` and the workers of `dvc queue` work in a clone below PROJECT/.dvc/tmp, which is deleted afterwards with all that
    DVC does not track; DVC_ROOT names PROJECT.
    """
    here = Path.cwd()
    if root := os.environ.get("DVC_ROOT"):
        dvc_root = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
        if dvc_root and dvc_root.is_relative_to(Path(root, ".dvc/tmp").resolve()):
            return Path(root) / here.relative_to(dvc_root)
    return Path()
