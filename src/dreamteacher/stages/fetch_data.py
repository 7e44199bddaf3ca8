"""Second step of a pipeline on a cluster: the pictures of a data version, with git and DVC."""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dreamteacher.errors import UserError
from dreamteacher.files import walk
from dreamteacher.places import inside
from dreamteacher.settings.file import load_params
from dreamteacher.settings.schema import Params
from dreamteacher.versioning import Clone

FILES = "files:"  # prefix of the data version of a local folder


def settings_of(folder: Path, overrides: list[str], where: str) -> Params:
    """The settings of the project in `folder`, whose ingest.source must be inside it. `where` names the project in messages.

    Raises:
        UserError: it is no project, a setting is invalid, its data is outside, or retrain.incoming is a relative path, which a step would
            look up in its own folder.
    """
    if not (folder / "params.yaml").exists():
        raise UserError(f"{where} has no params.yaml and so is no project; git_url names a project's repository or folder")
    params = load_params(inside(folder, "params.yaml", f"params.yaml of {where}"), overrides)
    source, incoming = params.ingest.source, params.retrain.incoming
    if "://" in source or Path(source).is_absolute():
        raise UserError(
            f"ingest.source = {source} is in no data version: a pipeline takes pictures that lie in the project; "
            f"`dvc import-url {source} pictures` copies them there, then set ingest.source to pictures"
        )
    if _leaves(source):
        raise UserError(f"ingest.source = {source} leads out of the project; name a place inside it")
    if incoming and "://" not in incoming and _leaves(incoming):
        raise UserError(f"retrain.incoming = {incoming} leads out of a step's folder; write its whole path, or an address such as s3://...")
    return params


def check_source(folder: Path, source: str) -> None:
    """Raises UserError if `source` does not exist in the project `folder`, or leads out of it."""
    place = inside(folder, source, f"ingest.source = {source}")
    if not place.exists() and not _is_pattern(source):
        raise UserError(f"{folder / source} does not exist; correct ingest.source, or fetch it by `dvc pull`")


def parts_of(clone: Clone, source: str) -> set[str]:
    """The files and folders of the revision that `run` needs for `source`; a list of files is fetched to find them.

    Raises:
        UserError: the revision has no such list, or the list leads out of the project.
    """
    from dreamteacher.data.shard_source import are_shards

    if are_shards(source):
        return {_above_pattern(source) if _is_pattern(source) else posixpath.dirname(source) or "."}
    if not clone.is_file(source):
        return {source}
    clone.get(source)
    return {posixpath.dirname(source) or ".", *(posixpath.dirname(name) or "." for name in _listed(clone.folder, source))}


def run(*, git_url: str, data_version: str, source: str, out: Path) -> dict[str, str]:
    """Fetch `source` of the project `git_url` into the folder `out`.

    `data_version` is a commit of the repository, with the data in git or DVC; if it begins with FILES, `git_url` is a local folder. A
    folder keeps its name; a list with its files, and shards, have the same paths in `out` as in the project. Links are resolved.

    Returns:
        `{"revision", "name"}`: the commit ("" for a local folder) and the name of the source in `out`.

    Raises:
        UserError: no such repository, revision or data, or a link or a line of a list that leads out of the project.
    """
    with tempfile.TemporaryDirectory() as scratch:
        clone = None if data_version.startswith(FILES) else Clone(git_url, data_version, Path(scratch) / "project")
        folder = clone.folder if clone else Path(git_url)
        if clone:
            clone.get(_above_pattern(source) if _is_pattern(source) else source)
        check_source(folder, source)
        if (folder / source).is_dir():
            name = (folder / source).name
            _copy_folder(folder, source, out / name)
        else:
            name = posixpath.normpath(source)
            _copy_files(folder, name, clone, out)
    return {"revision": clone.commit if clone else "", "name": name}


def _copy_folder(project: Path, source: str, target: Path) -> None:
    def check(link: str) -> None:
        name = os.path.relpath(link, project)
        inside(project, name, f"{name}, in ingest.source,")

    target.mkdir(parents=True, exist_ok=True)
    for name in walk(project / source, on_link=check):
        _copy(project / source / name, target / name)


def _copy_files(project: Path, source: str, clone: Clone | None, out: Path) -> None:
    """The files of a list or of shards, and label files beside them."""
    from dreamteacher.data.places import inputs_of, locate
    from dreamteacher.data.shard_source import are_shards

    if clone and not are_shards(source):
        clone.get(posixpath.dirname(source) or source)  # masks, labels.csv and classes.txt are beside it
        clone.get_files(_listed(project, source))
    for path in inputs_of(locate(str(project / source))).values():
        name = os.path.relpath(path, project)
        _copy(inside(project, name, name), out / name)
    if are_shards(source):
        return
    for name in _listed(project, source):
        place = inside(project, name, f"{source}: {name}")
        if place.exists():  # otherwise ingest reports it, as for a list on a laptop
            _copy(place, out / name)


def _listed(project: Path, source: str) -> Iterator[str]:
    """The files of a list and their masks, by path in the project."""
    from dreamteacher.data.names import read_list

    above = posixpath.dirname(source)
    for name, *_ in read_list(project / source):
        inner = name.lstrip("./").split("/")
        if name.startswith("/") or ".." in inner or _leaves(posixpath.join(above, name)):
            raise UserError(
                f"{source}: {name} leads out of the project; write where it lies from the folder of the list, inside the project"
            )
        yield posixpath.normpath(posixpath.join(above, name))


def _copy(place: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        shutil.copyfile(place, target)
    else:  # a broken link: ingest quarantines it, as on a laptop
        target.touch()


def _is_pattern(source: str) -> bool:
    """Whether the path has braces or * for several shards."""
    return bool(re.search(r"[{*].*\.(tar|tar\.gz|tgz)$", source))


def _above_pattern(source: str) -> str:
    """The folder in which all the shards lie."""
    return re.split(r"[{*]", source)[0].rpartition("/")[0] or "."


def _leaves(name: str) -> bool:
    return posixpath.normpath(name).split("/")[0] == ".."
