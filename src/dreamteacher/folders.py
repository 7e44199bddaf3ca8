"""Exclusive temporary folders, renamed atomically when complete."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dreamteacher.errors import UserError
from dreamteacher.files import share, sync_to_disk

log = logging.getLogger(__name__)
LOCK = ".lock"


@contextmanager
def locked(tmp: Path) -> Iterator[None]:
    """Context with an empty `tmp` locked for this process; it is removed if the body fails.

    Raises:
        UserError: it cannot be created, or another process has locked it.
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
    """Remove everything in `tmp` except the lock."""
    for left in tmp.iterdir():
        if left.name != LOCK:
            shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextmanager
def in_turn(checkpoints: Path) -> Iterator[None]:
    """Lock `checkpoints`, which two steps share if they compute the same for different outputs; the second waits for the first."""
    while True:
        checkpoints.mkdir(parents=True, exist_ok=True)
        try:
            lock = (checkpoints / LOCK).open("w")
        except FileNotFoundError:  # the first has finished meanwhile
            continue
        with lock:
            if not _lock(lock):
                log.info("another process computes the same; waiting for %s", checkpoints)
                fcntl.lockf(lock, fcntl.LOCK_EX)
            if _is(lock, checkpoints / LOCK):  # the first removes the folder when it is done
                yield
                return


def _lock(lock: IO[str]) -> bool:
    """Try to get the lock. Unlike flock, it is not inherited by loader workers, which may outlive a killed stage."""
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
    """Rename `tmp` to `out` once every byte is on disk; the old `out` is deleted only after the new one is in place."""
    (tmp / LOCK).unlink()
    share(tmp)
    for path in [*tmp.rglob("*"), tmp]:
        sync_to_disk(path)
    if out.is_symlink() or out.is_file():
        out.unlink()
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    tmp.rename(out)
    shutil.rmtree(old, ignore_errors=True)
