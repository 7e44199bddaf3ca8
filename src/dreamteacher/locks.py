"""Locks between processes. The system releases them when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def lock(path: Path, *, wait: bool = False, on_wait: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Context in which this process has locked the file `path`, which is created; yields whether it has.

    False: another process has the lock, or has just removed the file or its folder, as its last act. With `wait`, the lock is waited for,
    after calling `on_wait` if another process has it.

    Unlike flock's, the lock is not inherited by forks such as loader workers, which may outlive a killed stage. Closing any other handle of
    the file in this process would release it.
    """
    try:
        file = path.open("w")
    except FileNotFoundError:
        yield False
        return
    with file:
        mine = _try(file, fcntl.LOCK_EX)
        if wait and not mine:
            on_wait()
            fcntl.lockf(file, fcntl.LOCK_EX)
            mine = True
        yield mine and _is_at(path, file)


def is_locked(path: Path) -> bool:
    """Whether another process has locked `path`; nothing is written. False if there is no such file, or this user may not read it."""
    try:
        with path.open() as file:
            return not _try(file, fcntl.LOCK_SH)
    except OSError:
        return False


def _try(file: IO[str], kind: int) -> bool:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows both
        return False
    return True


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
