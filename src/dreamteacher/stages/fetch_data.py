"""First steps of a pipeline on a cluster: which commit a revision is, then its data and settings."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from dreamteacher.errors import UserError
from dreamteacher.params import Params
from dreamteacher.params_file import load_params
from dreamteacher.versioning import Clone


def commit_of(*, git_url: str, data_rev: str) -> str:
    """The commit that `data_rev` of `git_url` is now: a branch moves under its name. `data_rev` as it is where `git_url` is ""."""
    if not git_url:
        return data_rev
    with tempfile.TemporaryDirectory() as scratch:
        return Clone(git_url, data_rev, Path(scratch) / "project").commit


def overrides_of(settings: list[str], *, seeds: list[int], fresh: list[str], modes: list[str]) -> list[str]:
    """`settings` and what a pipeline's own parameters say is compared, as `--set` takes them."""
    compared = {"inits": [*fresh, "features", *modes], "modes": modes, "seeds": [int(seed) for seed in seeds]}
    return [*settings, *(f"compare.{name}={json.dumps(value)}" for name, value in compared.items())]


def settings_of(folder: Path, overrides: list[str], where: str) -> Params:
    """The settings of the project in `folder`, whose ingest.source is a part of it. `where` is what a user calls the project.

    Raises:
        UserError: it is no project, a setting is impossible, or its data lie elsewhere.
    """
    if not (folder / "params.yaml").exists():
        raise UserError(f"{where} has no params.yaml and so is no project; git_url names a project's repository, `project` its folder")
    params = load_params(folder / "params.yaml", overrides)
    source = params.ingest.source
    if "://" in source or Path(source).is_absolute():
        raise UserError(f"ingest.source = {source} is in no data version; `dvc import-url` it into the project and name that place")
    return params


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
        where = f"revision {clone.commit[:12]} of git_url" if clone else str(folder.absolute())
        params = settings_of(folder, overrides, where)
        source = params.ingest.source
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
