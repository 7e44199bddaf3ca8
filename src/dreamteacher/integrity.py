"""Check files against their recorded sha256.

Each file is hashed once per machine (1 to 2 GB/s) and then recognised by inode, size and modification time. So a truncated, replaced or
rewritten file is always noticed; bit rot after the first check, which does not change the modification time, is not.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dreamteacher.files import sha256_of

log = logging.getLogger(__name__)
LIMIT = 1 << 18  # lines in the state file, 33 bytes each; one a file
SLOW = 10e9  # bytes; larger checks are announced
_here: set[bytes] = set()  # files checked by this process, in case the state file cannot be written


def first_damaged(folder: Path, files: dict[str, str]) -> tuple[str, str] | None:
    """The first of `files` ({name below `folder`: sha256, hex}) whose content differs, with the reason; None: all are intact.

    Processes that check the same file at the same time take turns, so that one of them hashes it.

    Raises:
        OSError: a file is missing or unreadable.
    """
    checked = _here | _read_state()
    unchecked = [(name, sha256) for name, sha256 in files.items() if _token(folder / name, sha256) not in checked]
    size = sum((folder / name).stat().st_size for name, _ in unchecked)
    if size > SLOW:
        log.info("checking the content of %s (%.0f GB), once on this machine", folder, size / 1e9)
    for name, sha256 in unchecked:
        if problem := _check(folder / name, sha256):
            return name, problem
    return None


def remember(folder: Path, files: dict[str, str]) -> None:
    """Mark `files` ({name below `folder`: sha256, hex}), which this process has just written and hashed, as checked."""
    _add({_token(folder / name, sha256) for name, sha256 in files.items()})


def _check(path: Path, sha256: str) -> str | None:
    token = _token(path, sha256)
    with _in_turn(token):
        if token in _read_state():
            return None
        try:
            found = sha256_of(path).hex()
            if not found:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return os.strerror(errno.EIO)
        if found != sha256:
            return "its sha256 is not the recorded one"
        if _token(path, sha256) == token:  # otherwise it was modified meanwhile
            _add({token})
        return None


def _token(path: Path, sha256: str) -> bytes:
    """The line of the state file: a hash of inode, size, modification time and the verified sha256."""
    status = path.stat()
    text = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {sha256}"
    return hashlib.sha256(text.encode()).hexdigest()[:32].encode()


def _state_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "dreamteacher/verified")


def _read_state() -> set[bytes]:
    """The lines of the state file. A damaged line matches no file, which is then checked again."""
    with suppress(OSError, RuntimeError):  # RuntimeError: this user has no home
        return set(_state_file().read_bytes().splitlines())
    return set()


def _add(tokens: set[bytes]) -> None:
    """Append; above LIMIT, the state file keeps its newer half. If it cannot be written, only this process remembers."""
    _here.update(tokens)
    with suppress(OSError, RuntimeError):
        path = _state_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"".join(b"\n" + token for token in tokens))  # first end a possibly incomplete line
            size = file.tell()
        if size > LIMIT * 33:
            fresh = path.with_name(f"{path.name}.{os.getpid()}")
            fresh.write_bytes(b"\n".join(path.read_bytes().splitlines()[-LIMIT // 2 :]))
            fresh.replace(path)


@contextmanager
def _in_turn(token: bytes) -> Iterator[None]:
    """A lock per token across processes of this machine: one byte of a file, at the token's offset.

    The file is used for nothing else, because closing any handle of a file releases all locks of the process on it.
    """
    file: IO[bytes] | None = None
    with suppress(OSError, RuntimeError):
        path = _state_file().with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
        fcntl.lockf(file, fcntl.LOCK_EX, 1, int(token[:15], 16))
    try:
        yield
    finally:
        if file:
            file.close()
