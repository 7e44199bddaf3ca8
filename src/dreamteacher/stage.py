"""The frame of every stage: atomic outputs, a record of their origin, and checkpoints to resume from.

A folder with a `stage.json` is complete: the file is written last to a temporary sibling, which is then renamed. It has the sha256 of every
file, including itself; files are checked against it when read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import posixpath
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dreamteacher import clock, results
from dreamteacher.errors import UserError, resource_errors_in_one_line
from dreamteacher.files import digest_in_any_order, sha256_of, walk
from dreamteacher.folders import LOCK, empty, in_turn, locked, publish
from dreamteacher.graph import IDENTITY, STAGES, TOOLS
from dreamteacher.integrity import first_damaged, remember
from dreamteacher.mlflow_server import DIGEST
from dreamteacher.steps import announce
from dreamteacher.tracking import Tracker, open_tracker

log = logging.getLogger(__name__)
RECORD = "stage.json"
LOG = "log.jsonl"  # log of training.loop, beside its checkpoints
# Settings that affect how a stage runs or what it logs, but not its result. If only they change, a stopped run is resumed and a finished
# one is not repeated.
NOT_DIGESTED = {"workers", "checkpoint_every", "log_every", "sample_every", "monitor_every"}
KEYS = {"stage", "version", "digest", "params", "inputs", "versions", "files", "metrics"}  # of stage.json, besides its own sha256
ZEROS = "0" * 64  # placeholder for stage.json's own sha256 while that is computed
RECORDED_PACKAGES = ("torch", "torchvision", "timm", "diffusers", "accelerate", "numpy", "onnx", "onnxruntime", "mlflow", "dvc")


@dataclass
class Stage:
    """An opened stage; its body writes into `tmp`, fills `metrics`, and returns them."""

    name: str
    params: dict[str, Any]
    out: Path
    tmp: Path
    checkpoints: Path
    tracker: Tracker
    inputs: dict[str, str]  # their digests
    done: bool = False
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name with the parameters that distinguish stages of a chain: "finetune scratch 0"."""
        return _title(self.name, self.params)


@contextmanager
def open_stage(name: str, *, params: dict[str, Any], inputs: dict[str, Path], out: Path, overwrite: bool = False) -> Iterator[Stage]:
    """Open a stage whose output `out` appears atomically when the body ends, and not at all if it fails.

    Only `params` (sections of settings) and `inputs` may affect the result; without NOT_DIGESTED they form the digest that identifies a
    finished `out` and checkpoints. If `out` is complete with this digest, or the store of results has it (see `results`), and `overwrite`
    is not set, `done` is true, `metrics` are the recorded ones, and the body has nothing to do. `metrics` must not depend on time: they
    are part of `stage.json`, whose bytes depend only on params, inputs and package versions.

    Under torchrun only rank 0 writes and tracks.

    Raises:
        UserError: an input is missing, incomplete or damaged, `out` holds an input or something else or is damaged, another process is
            writing it, the disk is full or a folder cannot be written.
    """
    with resource_errors_in_one_line(name):
        _refuse_to_replace(out, inputs)
        announce(_title(name, params), params)
        params = without(params, NOT_DIGESTED)
        digests = {key: digest_of(path) for key, path in sorted(inputs.items())}
        digest = _sha256(_to_json({"stage": name, "params": params, "inputs": digests}).encode())[:16]
        checkpoints = clock.checkpoints_of(name, digest)
        stage = Stage(name, params, out, out.with_name(f".{out.name}.tmp"), checkpoints, Tracker(), digests)
        record = {"stage": name, "version": _version("dreamteacher"), "digest": digest, "params": params, "inputs": digests}
        if not overwrite and _is_complete(out, digest):
            stage.done, stage.metrics = True, read_stage(out)["metrics"]
            yield stage
        elif int(os.environ.get("RANK", "0")) > 0:
            yield stage
        else:
            with locked(stage.tmp), in_turn(checkpoints):
                if not overwrite and (made := _take(stage, digest)):
                    log.info("%s: taken from the store of results (%s)", stage.title, made)
                    yield stage
                    return
                tracking = open_tracker(name, flat(params), _tags(inputs, digests) | {DIGEST: digest}, checkpoints / "run.json")
                with tracking as stage.tracker:
                    with clock.timed(checkpoints):
                        yield stage
                    record["versions"] = {"python": platform.python_version()} | {p: v for p in RECORDED_PACKAGES if (v := _version(p))}
                    record["files"] = files = {file: sha256_of(stage.tmp / file).hex() for file in _files(stage.tmp)}
                    record["metrics"] = stage.metrics
                    text = _to_json(record | {"sha256": ZEROS})
                    (stage.tmp / RECORD).write_text(text.replace(ZEROS, _sha256(text.encode())))
                    remember(stage.tmp, files)
                    publish(stage.tmp, out)
                    results.keep(name, digest, out)
                    _remove(checkpoints)
                    stage.tracker.metrics(stage.metrics)
                    stage.tracker.artifact(out / RECORD)


def _refuse_to_replace(out: Path, inputs: dict[str, Path]) -> None:
    """Refuse to replace an `out` that contains an input, or other content that would be lost."""
    place = out.resolve()
    for path in inputs.values():
        if place in (path.resolve(), *path.resolve().parents):
            raise UserError(f"--out {out} is or contains the input {path}, which would be overwritten; name another folder")
    if not out.name:
        raise UserError(f"--out {out} is the current folder, which cannot be replaced; name a folder in it")


def _title(name: str, params: dict[str, Any]) -> str:
    return " ".join([name, *(str(params[key]) for key in IDENTITY if key in params)])


def _take(stage: Stage, digest: str) -> str | None:
    """Reuse the result from the store of results; returns its origin, or None if there is no intact one."""
    try:
        made = results.take(stage.name, digest, stage.tmp)
        if made:
            stage.metrics = read_stage(stage.tmp)["metrics"]
            publish(stage.tmp, stage.out)
            _remove(stage.checkpoints)
            stage.done = True
            return made
    except UserError as error:
        log.warning("%s: the result in the store is damaged and is computed again (%s)", stage.title, error)
        results.forget(stage.name, digest)
    empty(stage.tmp)
    results.nothing_to_take()
    return None


def read_stage(folder: Path) -> dict[str, Any]:
    """The `stage.json` of a complete stage output, after checking all its files (see `integrity`).

    Raises:
        UserError: the folder is missing, has no `stage.json`, lacks a file that its `stage.json` names, or one of them is damaged.
    """
    record = _read_record(folder)
    _check_files(folder, record, record["files"])
    return record


def _read_record(folder: Path) -> dict[str, Any]:
    maker = _maker(folder)
    remedy = f"run `dreamteacher {maker}` first" if maker else "run the stage that makes it first"
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; {remedy}")
    try:
        text = (folder / RECORD).read_text()
        record: dict[str, Any] = json.loads(text)
        if missing := KEYS - set(record):
            raise ValueError(f"no {min(missing)}")
        if unknown := set(record) - KEYS - {"sha256"}:
            raise ValueError(f"unknown {min(unknown)!r}")
        # Earlier revisions did not write its own sha256.
        if "sha256" in record and _sha256(text.replace(record["sha256"], ZEROS).encode()) != record["sha256"]:
            raise ValueError("its sha256 is not the recorded one")
    except FileNotFoundError:
        raise UserError(f"{folder} is not a complete stage output (it has no {RECORD}); {remedy}") from None
    except (ValueError, TypeError) as error:  # no JSON, no text, no object
        again = f"fetch it again (`dvc checkout --force`), or remove {folder} and {remedy}"
        raise UserError(f"{folder / RECORD} is damaged ({error}); {again}") from error
    return record


def _maker(place: Path) -> str | None:
    """The command whose default output path matches the end of `place` or its parent; None: no command's."""
    # A seed is a number, so that files in artifacts/backbones/RECIPE are not taken for folders of seeds.
    ends = {
        re.sub(r"\{.*?\}", "*", command.out.partition("/")[2].replace("{seed}", "[0-9]*")): name
        for name, command in (STAGES | TOOLS).items()
    }
    most_telling_first = sorted(ends, key=lambda end: -end.count("/"))  # a recipe may be called data
    return next((ends[end] for end in most_telling_first if place.match(end) or place.parent.match(end)), None)


def _check_files(folder: Path, record: dict[str, Any], files: dict[str, str]) -> None:
    stage = record["stage"]
    again = f"run `dreamteacher {stage}` again with --overwrite" if stage in STAGES | TOOLS else f"run {stage} again"
    remedy = f"fetch it again (`dvc checkout --force`) or {again}"
    lost = [file for file in files if not (folder / file).is_file()]
    if lost:
        raise UserError(f"{folder} lacks {lost[0]}, which its {RECORD} names; {remedy}")
    if damaged := first_damaged(folder, files):
        raise UserError(f"{folder / damaged[0]} is damaged ({damaged[1]}); {remedy}")


def digest_of(path: Path) -> str:
    """sha256 (hex) of a file, of a stage output (that of its `stage.json`), or a digest of the names and contents of any other folder.

    What is hidden in a folder does not count.

    Raises:
        UserError: it does not exist; it is a stage output, or a file of one, that is incomplete or damaged.
    """
    if not path.exists():
        read_stage(path)  # raises, naming the stage that makes it
    if path.is_file():
        if path.name != RECORD and (path.parent / RECORD).exists():
            record = _read_record(path.parent)
            if sha256 := record["files"].get(path.name):
                _check_files(path.parent, record, {path.name: sha256})
                return str(sha256)
        return sha256_of(path).hex()
    if (path / RECORD).exists():
        read_stage(path)
        return digest_of(path / RECORD)
    return digest_in_any_order(os.fsencode(name) + b"\0" + sha256_of(posixpath.join(path, name)) for name in walk(path))


def _is_complete(out: Path, digest: str) -> bool:
    """Whether `out` is the finished output of this digest; False when there is nothing there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / RECORD).is_file():
        raise UserError(f"{out} holds files that no stage recorded; name another --out, or pass --overwrite to replace them")
    record = read_stage(out)
    if record["digest"] != digest:
        raise UserError(f"{out} holds the result of other settings or inputs; name another --out, or pass --overwrite to replace it")
    return True


def _remove(checkpoints: Path) -> None:
    """Rename, then delete, so that waiting processes see it gone; keeps log and duration. NFS keeps it, empty, while the lock is open."""
    if (checkpoints / LOG).exists():
        (checkpoints / LOG).replace(checkpoints.with_suffix(".jsonl"))
    clock.keep(checkpoints)
    old = checkpoints.with_name(f".{checkpoints.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    checkpoints.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _tags(inputs: dict[str, Path], digests: dict[str, str]) -> dict[str, str]:
    """Tags of the tracked run about its inputs; the data set is identified by the hash of ingest."""
    tags = {f"dreamteacher.input.{key}": digest for key, digest in digests.items()}
    description = inputs["data"] / "dataset.json" if "data" in inputs else None
    if description and description.is_file():
        tags["dreamteacher.data"] = json.loads(description.read_text())["hash"]
    return tags


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != LOCK)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def without(values: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """Nested settings without those called one of `keys`, at any depth."""
    return {key: without(value, keys) if isinstance(value, dict) else value for key, value in values.items() if key not in keys}


def _to_json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
