"""Many files, one after the other: which there are, and a digest of them."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator


def walk(root: str | os.PathLike[str], on_link: Callable[[str], None] | None = None) -> Iterator[str]:
    """Names, relative to `root`, of every file below it, in the order of the file system; what starts with a dot is passed over, as are
    pipes and sockets, which would keep a reader waiting. A link that leads nowhere is named.

    Links are followed, and a folder is entered once: a link may lead to one above it. `on_link` is called with the path of each link
    before it is followed. Entry by entry, as os.walk would hold the names of a folder of a million pictures; plain text, as pathlib interns
    every part of a path, and Python 3.12 never frees what is interned.
    """
    waiting, visited = [os.fspath(root)], set()
    above = len(posixpath.join(root, ""))
    while waiting:
        folder = waiting.pop()
        here = os.stat(folder)  # noqa: PTH116 - see above
        if (here.st_dev, here.st_ino) in visited:
            continue
        visited.add((here.st_dev, here.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if on_link and entry.is_symlink():
                    on_link(entry.path)
                if entry.is_dir():
                    waiting.append(entry.path)
                elif entry.is_file() or entry.is_symlink():
                    yield entry.path[above:]


def sha256_of(path: str | os.PathLike[str]) -> bytes:
    """sha256 of a file's content; empty for a link that leads nowhere."""
    if not os.path.exists(path):  # noqa: PTH110
        return b""
    with open(path, "rb") as file:  # noqa: PTH123 - see walk
        return hashlib.file_digest(file, "sha256").digest()


def digest_in_any_order(parts: Iterable[bytes]) -> str:
    """64 hex digits that tell sets of `parts` apart, whatever their order: a sum, as sorting would hold them all."""
    return f"{sum(int.from_bytes(hashlib.sha256(part).digest()) for part in parts) % 2**256:064x}"
