"""Whether files still have the content that was recorded of them.

Each file is hashed once per machine (1 to 2 GB/s) and recognised by its inode, size and modification time afterwards. So a cut, replaced or
rewritten file is always noticed; bits that rot after the first check, without a change of the modification time, are not.
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
SLOW = 10e9  # bytes; a check of more is announced
_here: set[bytes] = set()  # what this process has checked, in case the state file cannot be written


def first_damaged(folder: Path, files: dict[str, str]) -> tuple[str, str] | None:
    """The first of `files` ({name below `folder`: sha256, hex}) with another content than that, and what is wrong; None: all are intact.

    Processes that check the same file at the same time take turns, so that one of them hashes it.

    Raises:
        OSError: a file is missing or must not be read.
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
    """Count `files` ({name below `folder`: sha256, hex}), which this process has just written and hashed, as checked."""
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
        if _token(path, sha256) == token:  # else it was written meanwhile
            _add({token})
        return None


def _token(path: Path, sha256: str) -> bytes:
    """The line of the state file that says: this inode, of this size and modification time, was found to have this sha256."""
    status = path.stat()
    text = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {sha256}"
    return hashlib.sha256(text.encode()).hexdigest()[:32].encode()


def _state_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "dreamteacher/verified")


def _read_state() -> set[bytes]:
    """Lines are hashes, so a torn or damaged one matches no file, which is then checked again."""
    with suppress(OSError, RuntimeError):  # RuntimeError: this user has no home
        return set(_state_file().read_bytes().splitlines())
    return set()


def _add(tokens: set[bytes]) -> None:
    """Append; a state file that grows beyond LIMIT keeps its newer half. Where it cannot be written only this process remembers."""
    _here.update(tokens)
    with suppress(OSError, RuntimeError):
        path = _state_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"".join(b"\n" + token for token in tokens))  # first the end of what may be a torn line
            size = file.tell()
        if size > LIMIT * 33:
            fresh = path.with_name(f"{path.name}.{os.getpid()}")
            fresh.write_bytes(b"\n".join(path.read_bytes().splitlines()[-LIMIT // 2 :]))
            fresh.replace(path)


@contextmanager
def _in_turn(token: bytes) -> Iterator[None]:
    """One process of this machine at a time for each token: a lock of one byte, at the token's offset.

    The file is no other's: to close any handle of a file lets go of all locks that the process has on it.
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
