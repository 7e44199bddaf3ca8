"""Folders that one process has for itself while it fills them, and that appear under their name all at once."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dreamteacher.errors import UserError
from dreamteacher.files import sync_to_disk

log = logging.getLogger(__name__)
LOCK = ".lock"


@contextmanager
def locked(tmp: Path) -> Iterator[None]:
    """Hold an empty `tmp` for this process alone; it is removed when the body fails.

    Raises:
        UserError: it cannot be made, or another process holds it.
    """
    try:
        tmp.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # what /proc and its like say
        raise UserError(f"no folder can be made in {tmp.parent}; name another --out") from error
    with (tmp / LOCK).open("w") as lock:
        if not (_lock(lock) and _is(lock, tmp / LOCK)):
            raise UserError(f"another process is writing {tmp}; wait for it to end, or name another --out")
        empty(tmp)
        try:
            yield
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise


def empty(tmp: Path) -> None:
    """Remove all in `tmp` but the lock."""
    for left in tmp.iterdir():
        if left.name != LOCK:
            shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextmanager
def in_turn(checkpoints: Path) -> Iterator[None]:
    """Hold `checkpoints`, which two steps share that compute the same for different places; the second waits for the first."""
    while True:
        checkpoints.mkdir(parents=True, exist_ok=True)
        try:
            lock = (checkpoints / LOCK).open("w")
        except FileNotFoundError:  # the first was done in between
            continue
        with lock:
            if not _lock(lock):
                log.info("another process computes the same; waiting for %s", checkpoints)
                fcntl.lockf(lock, fcntl.LOCK_EX)
            if _is(lock, checkpoints / LOCK):  # the first removes the folder when it is done
                yield
                return


def _lock(lock: IO[str]) -> bool:
    """Whether this process has the lock now. Unlike flock it is not inherited by loader workers, which may outlive a killed stage."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def publish(tmp: Path, out: Path) -> None:
    """Rename `tmp` to `out` once every byte is on disk; what stood there before goes only when the new is in place."""
    readers = stat.S_IMODE((tmp / LOCK).stat().st_mode)
    (tmp / LOCK).unlink()
    for path in [*tmp.rglob("*"), tmp]:
        mode = path.stat().st_mode
        if path.is_file() and mode | readers != mode:  # safetensors makes files that nobody else may read, whatever the umask
            path.chmod(stat.S_IMODE(mode) | readers)
        sync_to_disk(path)
    if out.is_symlink() or out.is_file():
        out.unlink()
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    tmp.rename(out)
    shutil.rmtree(old, ignore_errors=True)
