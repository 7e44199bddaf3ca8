"""First step of a pipeline on a cluster: one data version, and the settings of that revision."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from dreamteacher.errors import UserError
from dreamteacher.params import Params
from dreamteacher.params_file import load_params
from dreamteacher.versioning import Clone


def run(*, project: str, git_url: str, data_rev: str, overrides: list[str], out: Path) -> tuple[Params, dict[str, str]]:
    """Put what ingest.source names into the folder `out`, under its own name, and read the settings that go with it.

    The project is revision `data_rev` of `git_url`, where the data lie in git or DVC, or the local folder `project` if `git_url` is "".
    `overrides` are settings as `--set` takes them.

    Returns:
        The settings, and `{"revision", "name"}`: the commit ("" for a local folder) and the name of the data in `out`.

    Raises:
        UserError: no such repository, revision or data, or an impossible setting.
    """
    with tempfile.TemporaryDirectory() as scratch:
        clone = Clone(git_url, data_rev, Path(scratch) / "project") if git_url else None
        folder = clone.folder if clone else Path(project)
        params = load_params(folder / "params.yaml", overrides)
        source = params.ingest.source
        if "://" in source or Path(source).is_absolute():
            raise UserError(f"ingest.source = {source} is in no data version; `dvc import-url` it into the project and name that place")
        found = clone.get(source) if clone else folder / source
        if not found.exists():
            raise UserError(f"{found} does not exist; name a project that holds its ingest.source, or fetch it by `dvc pull`")
        target = out / found.name
        out.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            shutil.copytree(found, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(found, target)
    return params, {"revision": clone.commit if clone else "", "name": found.name}
