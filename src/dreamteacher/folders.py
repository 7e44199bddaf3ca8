"""Exclusive temporary folders, renamed atomically when complete."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamteacher.errors import UserError
from dreamteacher.files import share, sync_to_disk
from dreamteacher.locks import lock

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
        raise UserError(f"no folder can be created in {tmp.parent}; name another --out") from error
    with lock(tmp / LOCK) as mine:
        if not mine:
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

    def say() -> None:
        log.info("another process computes the same result; waiting for %s", checkpoints)

    while True:
        checkpoints.mkdir(parents=True, exist_ok=True)
        with lock(checkpoints / LOCK, wait=True, on_wait=say) as mine:
            if mine:  # otherwise the first has removed the folder, as it does when it is done
                yield
                return


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
