"""Files: walking folders, digests, atomic replacement, and fsync."""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import posixpath
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

# System folders of operating systems and network storage; in lower case.
SYSTEM_FOLDERS = {
    "@eadir", "@__thumb", "@tmp", "@recycle", "#recycle", "#snapshot", "@recently-snapshot", "$recycle.bin", "recycler",
    "system volume information", "lost+found", "lost.dir", "__macosx",
}  # fmt: skip


def walk(
    root: str | os.PathLike[str],
    skipped: Callable[[str, str], None] = lambda kind, name: None,
    on_link: Callable[[str], None] = lambda path: None,
) -> Iterator[str]:
    """Names, relative to `root`, of all files below it, in the order of the file system, without hidden files, pipes and sockets.

    Links are followed after everything else; a broken link is yielded. Each folder is entered once, as a link may lead to a parent. Entries
    are read one by one, because os.walk would hold the names of a folder of a million pictures, and names are strings, because pathlib
    interns every part of a path and Python 3.12 never frees interned strings.

    Args:
        root: folder, which must be readable.
        skipped: called with (kind, folder): "system" for SYSTEM_FOLDERS and "unreadable", which are not entered, and "empty".
        on_link: called with the path of each link before it is followed.
    """
    waiting, links, visited = [os.fspath(root)], deque[str](), set()
    top, above = waiting[0], len(posixpath.join(root, ""))
    while waiting or links:
        folder = waiting.pop() if waiting else links.popleft()
        try:
            here = os.stat(folder)  # noqa: PTH116 - see above
            if (here.st_dev, here.st_ino) in visited:
                continue
            visited.add((here.st_dev, here.st_ino))
            entries = os.scandir(folder)
        except PermissionError:
            if folder == top:
                raise
            skipped("unreadable", folder[above:])
            continue
        is_empty = True
        with entries:
            for entry in (each for each in entries if not each.name.startswith(".")):
                is_empty = False
                if entry.is_symlink():
                    on_link(entry.path)
                if _is_folder(entry):
                    if entry.name.lower() in SYSTEM_FOLDERS:
                        skipped("system", entry.path[above:])
                    elif entry.is_symlink():
                        bisect.insort(links, entry.path)
                    else:
                        waiting.append(entry.path)
                elif entry.is_symlink() or entry.is_file():
                    yield entry.path[above:]
        if is_empty:
            skipped("empty", folder[above:])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a folder that may not be read, or in a circle
        return False


def sha256_of(path: str | os.PathLike[str]) -> bytes:
    """sha256 of a file's content; empty for broken links, unreadable files and folders."""
    if not os.path.exists(path):  # noqa: PTH110
        return b""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - see walk
            return hashlib.file_digest(file, "sha256").digest()
    except (PermissionError, IsADirectoryError):
        return b""


def replace_file(path: Path, content: bytes | str) -> None:
    """Write `path` atomically: readers, also after a crash, see the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_note(path: Path) -> dict[str, Any]:
    """The object in a JSON file that can be done without; empty where it is missing or cut short, as by a power cut or a full disk."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def append_line(path: Path, line: str) -> None:
    """Append a line to `path`, whole or, where it cannot be written whole, not at all.

    A system call may write a part and give no reason; the reason, such as a full disk, comes from writing the rest.
    """
    rest = memoryview(f"{line}\n".encode())
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException as error:
            file.truncate(size)
            if isinstance(error, OSError):
                error.filename = str(path)
            raise


def share(folder: Path) -> None:
    """Give the files below `folder` the mode that the umask allows: safetensors makes files that only their owner may read."""
    new = folder / ".mode"
    new.touch()
    allowed = stat.S_IMODE(new.stat().st_mode)
    new.unlink()
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode  # the target of a link may belong to somebody else
        if stat.S_ISREG(mode) and mode | allowed != mode:
            path.chmod(stat.S_IMODE(mode) | allowed)


def sync_to_disk(path: Path) -> None:
    """fsync a file's content, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_in_any_order(parts: Iterable[bytes]) -> str:
    """Order-independent digest (64 hex digits) of a set of `parts`: a sum, since sorting would hold all in memory."""
    return f"{sum(int.from_bytes(hashlib.sha256(part).digest()) for part in parts) % 2**256:064x}"
