"""A shared store of stage results, for `dvc repro` on a laptop and runs on a cluster, with any image.

The key of a result is the stage's digest (settings and inputs), the code of this package, and the versions of the packages that affect
results. It is stored at STAGE/KEY: `result/`, the stage's output, and `made.json`, which is written last and names the run that made it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from dreamteacher.errors import UserError, first_line
from dreamteacher.files import sha256_of, walk

log = logging.getLogger(__name__)
MADE = "made.json"
COMPUTING = ("torch", "torchvision", "timm", "diffusers", "accelerate", "numpy", "onnx", "onnxruntime")  # packages
# Stages with external effects, or that depend on the machine.
NEVER_TAKEN = {"publish", "gate"}
_only = False


class NothingToTake(Exception):
    """The store has no such result; see only_take."""


def store() -> str | None:
    """The store in DREAMTEACHER_RESULTS: a folder or an fsspec URL, such as s3://bucket/results. None if not set."""
    return os.environ.get("DREAMTEACHER_RESULTS") or None


def take(stage: str, digest: str, folder: Path) -> str | None:
    """Copy the result of `digest` to `folder`; returns its run and time, or None if the store has no such result or cannot be read.

    Nothing is reused with DREAMTEACHER_REUSE=false, or in one of several torchrun processes, which would all have to reuse it. The caller
    checks the files against stage.json, and calls `forget` if they are damaged.

    Raises:
        NothingToTake: instead of None, within only_take.
        UserError: the result's made.json is damaged; nothing was written.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if store() and stage not in NEVER_TAKEN and alone and os.environ.get("DREAMTEACHER_REUSE") != "false":
        try:
            files, place = _open(stage, digest)
            if files.exists(f"{place}/{MADE}"):
                made = _read_made(files.cat_file(f"{place}/{MADE}"))
                for name in made["files"]:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    files.get_file(f"{place}/result/{name}", str(folder / name))
                return f"{made['by']}, {made['at']}"
        except UserError:
            raise
        except FileNotFoundError as error:
            log.warning("%s: the result in %s lacks %s", stage, store(), first_line(error))
            forget(stage, digest)
        except Exception as error:  # any error of the store's client; the stage can be computed instead
            log.warning("%s: nothing is taken from %s (%s)", stage, store(), first_line(error))
    nothing_to_take()
    return None


def _read_made(content: bytes) -> dict[str, Any]:
    """Read made.json. It is untrusted, so all its files must be in the result's folder.

    Raises:
        UserError: a file is not, or it was not written by `keep`.
    """
    try:
        made: dict[str, Any] = json.loads(content)
        names = [PurePosixPath(name) for name in made["files"]]
        outside = [name for name in names if name.is_absolute() or ".." in name.parts or not name.parts]
        if outside or not {"by", "at"} <= set(made):
            raise ValueError(f"it names {str(outside[0])!r}, which is no file of the result" if outside else "it does not say who made it")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{MADE}: {first_line(error)}") from error
    return made


def nothing_to_take() -> None:
    """Raises NothingToTake within only_take; elsewhere the stage is computed."""
    if _only:
        raise NothingToTake


def keep(stage: str, digest: str, folder: Path) -> None:
    """Add the complete stage output `folder` to the store, if missing there. If the store cannot be written, log a warning."""
    if not store() or stage in NEVER_TAKEN:
        return
    try:
        files, place = _open(stage, digest)
        if not files.exists(f"{place}/{MADE}"):
            names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            for name in names:
                target = f"{place}/result/{name}"
                files.makedirs(target.rpartition("/")[0], exist_ok=True)
                files.put_file(str(folder / name), target)
            made = {"by": _who(), "at": datetime.now(UTC).isoformat(" ", "minutes"), "files": names}
            files.pipe_file(f"{place}/{MADE}", json.dumps(made, indent=1).encode())
    except Exception as error:
        log.warning("%s: the result is not kept in %s (%s)", stage, store(), first_line(error))


def forget(stage: str, digest: str) -> None:
    """Remove a result that turned out to be damaged, if the store can be written."""
    try:
        files, place = _open(stage, digest)
        files.rm_file(f"{place}/{MADE}")
    except Exception as error:
        log.warning("%s: the result stays in %s (%s)", stage, store(), first_line(error))


@contextmanager
def only_take() -> Iterator[None]:
    """Context in which a stage that is not in the store raises NothingToTake, to check before starting several processes."""
    global _only  # noqa: PLW0603
    _only = True
    try:
        yield
    finally:
        _only = False


def _open(stage: str, digest: str) -> tuple[Any, str]:
    import fsspec

    files, root = fsspec.core.url_to_fs(store(), use_listings_cache=False)
    made_by = {"digest": digest, "code": code_digest(), "python": platform.python_version_tuple()[:2], "versions": _versions()}
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:32]
    return files, f"{root}/{stage}/{key}"


@cache
def code_digest() -> str:
    """sha256 (hex) of all files of this package, so that a new image with the same code reuses results."""
    package = Path(__file__).parent
    names = sorted(name for name in walk(package) if "__pycache__" not in name)
    return hashlib.sha256(b"".join(name.encode() + b"\0" + sha256_of(package / name) for name in names)).hexdigest()


def _versions() -> dict[str, str]:
    """A version without its build variant, such as +cpu."""
    found = {}
    for package in COMPUTING:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def _who() -> str:
    run = os.environ.get("DREAMTEACHER_RUN")
    return f"run {run}" if run else f"{os.environ.get('USER', 'somebody')} on {socket.gethostname()}"
