"""Atomic, checksummed checkpoints: a crash, a full disk or a flipped bit cannot lead to a wrong result.

A checkpoint is one file, `step-00000500-SHA256.pt` (first 32 hex digits of its checksum), of tensors and plain types.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import torch

from dreamteacher.errors import UserError, first_line
from dreamteacher.files import sync_to_disk

KEPT = 3
_NAME = re.compile(r"step-(\d+)-([0-9a-f]{32})\.pt")


class Damaged(Exception):
    """A checkpoint that cannot be trusted; the message says why."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step` and remove all but the newest three.

    The folder contains only complete checkpoints (and perhaps a hidden temporary file) at any time, also after a power cut.

    Raises:
        UserError: the disk is full or the folder cannot be written; earlier checkpoints are intact.
    """
    temporary = folder / f".step-{step:08d}.tmp"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                sink = _HashingSink(file)
                torch.save(state, cast(IO[bytes], sink))
                sink.finish()
            path = temporary.replace(folder / f"step-{step:08d}-{sink.digest()}.pt")
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_to_disk(folder)
        # Checkpoints of later steps were skipped as damaged when this run resumed.
        kept = [path, *(other for other in list_checkpoints(folder) if _step(other) < step)][:KEPT]
        for other in list_checkpoints(folder):
            if other not in kept:
                other.unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first."""
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: (_step(path), path.name), reverse=True)


def newest_checkpoint(
    folder: Path, usable: Callable[[dict[str, Any]], bool], say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is complete and `usable`, or None; `say` gets a line with the reason for each skipped one."""
    for path in list_checkpoints(folder):
        try:
            state = read_checkpoint(path)
            if not usable(state):
                raise Damaged("it is of another model")
            return path, state
        except Damaged as why:
            say(f"checkpoint {path} is passed over: {why}")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in the checkpoint `path`, on the CPU.

    Raises:
        Damaged: it cannot be read, its checksum is wrong, or it was not written by `save_checkpoint`.
    """
    match = _NAME.fullmatch(path.name)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not match or not digest.startswith(match[2]):
                raise Damaged("its checksum is wrong")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise Damaged(f"it cannot be read ({error.strerror or error})") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise Damaged(f"it cannot be loaded ({first_line(error)})") from error


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failure to write below `folder` into a one-line UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; make room or make it writable, then run the same command again"
        ) from error


class _HashingSink:
    """A file for torch.save that computes the checksum while writing.

    torch writes from C++, where an exception in `write` would abort the process: it is stored and raised by `finish`.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._sha = hashlib.sha256()
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        data = memoryview(data)
        if self._error is None:
            try:
                self._file.write(data)
                self._sha.update(data)
            except OSError as error:
                self._error = error
        return data.nbytes

    def flush(self) -> None:
        """Nothing to do before `finish`."""

    def finish(self) -> None:
        if self._error is not None:
            raise self._error
        self._file.flush()
        os.fsync(self._file.fileno())

    def digest(self) -> str:
        return self._sha.hexdigest()[:32]


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1])
