"""Resolve a source (folder, list file, address or WebDataset shards) and list the inputs to be digested."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path

from dreamteacher.data.formats import NOT_A_LIST
from dreamteacher.data.names import read_list, require_files
from dreamteacher.data.shard_source import are_shards, expand
from dreamteacher.data.trees import NOT_PICTURES, Folder, Prefix, Tree, describe
from dreamteacher.errors import UserError
from dreamteacher.files import digest_in_any_order, sha256_of


@dataclass(frozen=True)
class Place:
    """A resolved source: `urls` of its shards, else the `tree` of its files; `listing`: the file that lists them."""

    source: str
    urls: list[str]
    tree: Tree | None
    listing: Path | None


def locate(source: str, setting: str = "ingest.source") -> Place:
    """Resolve `source`, the value of `setting`.

    Raises:
        UserError: there is nothing at `source`, or it is a list that names no file.
    """
    if not source:
        raise UserError(f"{setting} is empty; name a folder, an address, a text file of paths, or WebDataset shards")
    if are_shards(source):
        return Place(source, expand(source), None, None)
    if "://" in source:
        return Place(source, [], Prefix(source), None)
    path = Path(source)
    if not path.exists():
        home = " (~ is not replaced by the home folder here; write it out)" if source.startswith("~") else ""
        raise UserError(f"{setting}: {source} does not exist{home}; name a folder, an address, a text file of paths, or WebDataset shards")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{setting}: {source} is neither a folder nor a file, but a pipe, a socket or a device; name a folder")
    if not path.is_dir() and (what := NOT_A_LIST.get(path.suffix.lower())):
        raise UserError(f"{setting}: {source} is {what}")
    if path.is_dir():
        return Place(source, [], Folder(path), None)
    require_files(path, setting)
    return Place(source, [], Folder(path.parent), path)


def inputs_of(place: Place) -> dict[str, Path]:
    """{name: local file or folder} of a source, to be digested; empty for an address. For the rest see `fingerprint`."""
    if place.urls:
        paths = [Path(url) for url in place.urls if "://" not in url]
        names = paths[:1] and [path for path in [paths[0].parent / "classes.txt"] if path.exists()]
        return {f"source/{i:06d}/{path.name}": path for i, path in enumerate([*paths, *names])}
    if not isinstance(place.tree, Folder):
        return {}
    if not place.listing:
        return {"source": place.tree.root}
    beside = {f"source/{name}": place.tree.root / name for name in sorted(NOT_PICTURES)}
    return {"source": place.listing} | {key: other for key, other in beside.items() if other.exists()}


def fingerprint(place: Place) -> str | None:
    """Digest of inputs beyond `inputs_of`: the files in a list, or size and ETag or time of each object at an address.

    Raises:
        UserError: the list is not text, or the address cannot be reached.
    """
    if addresses := [url for url in place.urls if "://" in url]:
        return digest_in_any_order(describe(url).encode() for url in addresses)
    if isinstance(place.tree, Prefix):
        return digest_in_any_order(line.encode() for line in place.tree.describe())
    if not place.listing:
        return None
    names = (each.name for each in read_list(place.listing))
    return digest_in_any_order(os.fsencode(name) + b"\0" + sha256_of(posixpath.join(place.listing.parent, name)) for name in names)
