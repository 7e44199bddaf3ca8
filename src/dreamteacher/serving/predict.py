"""`dreamteacher predict`: from files, folders and glob patterns to text, JSON lines or CSV."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from dreamteacher.data.decode import SUFFIXES, BadPicture, decode
from dreamteacher.errors import UserError
from dreamteacher.files import SYSTEM_FOLDERS
from dreamteacher.serving.answers import Answer
from dreamteacher.serving.client import Client
from dreamteacher.serving.connection import TIMEOUT, Protocol
from dreamteacher.serving.contract import check_size
from dreamteacher.serving.rendering import rendering_of, rendering_of_task

Format = Literal["text", "jsonl", "csv"]

AT_ONCE = 8  # concurrent batches, from which the server forms its own

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass
class Row:
    """One picture: path, error, bytes, pixels and answers while needed, and the files written."""

    path: Path
    place: Path | None  # where its files go, without their suffixes
    error: str = ""
    data: bytes = b""
    picture: np.ndarray | None = None
    answers: list[Answer] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # mask, overlay, features


def predict(
    images: Iterable[Path],
    url: str,
    model: str,
    out: Path | None = None,
    *,
    protocol: Protocol = "http",
    features: bool = False,
    batch: int = 1,
    output: Format = "text",
) -> None:
    """Send every picture to the server at `url`; prints one line per picture, in order.

    `images` are files, folders (all pictures below) and patterns, such as `shots/**/*.jpg`.
    Segmentation: the share of each class; with `out` also STEM.mask.png (class ids, in the picture's own size) and STEM.overlay.png.
    Detection: the number of objects of each class whose score is 0.5 or more, as JSON lines all objects with their scores; with `out` also
    STEM.overlay.png.
    Instances: the number of objects of each class, as JSON lines all of them with score and size; with `out` also STEM.instances.png (the
    number of an object in each pixel, 16 bits) and STEM.overlay.png.
    Keypoints: the number of objects and of their keypoints, as JSON lines with x, y and scores; with `out` also STEM.overlay.png.
    Multi-label: the classes of a probability of 0.5 or more; depth: its range, with `out` STEM.depth.tif (float32) and STEM.overlay.png; a
    task of another package: the sizes of its outputs, with `out` STEM.outputs.npz.
    Classification: the three likeliest classes with their probabilities; as JSON lines and CSV all of them.
    `features` asks MODEL-backbone as well and writes STEM.npz: `strideS` (C, H/S, W/S) and `embedding` (C,), float32, of the
    picture as prepared, and `size`, its (H, W) unpadded. `batch` pictures share a request where their shapes allow.

    Raises:
        UserError: the server cannot be reached or lacks the model, `out` is needed or lies among the pictures, or some pictures are bad
            (the others are done).
    """
    if features and out is None:
        raise UserError("features are written to files; name a folder with --out")
    images = list(images)
    if out and (among := next((path for path in images if path.is_dir() and out.resolve().is_relative_to(path.resolve())), None)):
        raise UserError(f"--out {out} lies in {among}, among the pictures; name a folder outside")
    with Client(url, model, protocol=protocol, timeout=TIMEOUT * batch) as client:
        task, classes = client.contract.task, client.contract.classes
        if features:
            client.served(f"{model}-backbone")
        if out:
            out.mkdir(parents=True, exist_ok=True)
        columns = _columns(task, out, features)
        render: dict[Format, Callable[[Row], str]] = {"text": _as_text, "jsonl": _as_json, "csv": partial(_as_csv, columns, classes)}
        if output == "csv":
            print(_csv_line([*columns, *classes]))
        asked = bad = 0
        what = "pictures"
        found = _pictures(images)
        rows = (Row(path, place) for path, place in (_places(found, out) if out else ((path, None) for path in found)))
        for done in _in_order(lambda part: _ask(client, part, features), _parts(rows, batch), AT_ONCE):
            for row in done:
                asked += 1
                bad += bool(row.error)
                if row.error and os.path.isdir(row.path):  # noqa: PTH112 - Path's raises where a parent cannot be entered
                    what = "pictures or folders"
                print(render[output](row), flush=True)
    if bad:
        where = "see the lines that begin with BAD" if output == "text" else "see `error` in their lines"
        raise UserError(f"{bad} of {asked} {what} could not be read; {where}")


def _ask(client: Client, rows: list[Row], features: bool) -> list[Row]:
    """Fill the rows of one batch."""
    for row in rows:
        try:
            row.data = row.path.read_bytes()
            row.picture = decode(row.data).image
            check_size(row.picture.shape[0], row.picture.shape[1], client.contract)
        except IsADirectoryError:
            row.error = f"there is no picture in it; name pictures, such as {row.path}/*.jpg"
        except (BadPicture, OSError) as error:
            row.error = (isinstance(error, OSError) and error.strerror) or str(error)
    good = [row for row in rows if not row.error]
    pictures = [row.picture for row in good if row.picture is not None]
    files = client.served(client.model).takes_files
    answers: list[Sequence[Answer]] = [client.predict_batch([row.data for row in good] if files else pictures)]
    if features:
        answers.append(client.features_batch(pictures))
    for row, *of_picture in zip(good, *answers, strict=True):
        row.answers += of_picture
    for row in good:
        for answer in row.answers:
            if row.place and row.picture is not None:
                row.files |= rendering_of(answer).save(answer, row.picture, row.place)
        row.data, row.picture = b"", None
    return rows


def _pictures(images: Iterable[Path]) -> Iterator[Path]:
    """The files in the order of `images`; missing paths and folders without pictures are kept, to be reported."""
    for path in images:
        if path.is_dir():
            found: Iterable[Path] = _below(path)
        elif glob.has_magic(str(path)) and not path.exists():
            found = _pictures(map(Path, sorted(glob.iglob(str(path), recursive=True))))  # noqa: PTH207 (Path's takes no absolute pattern)
        else:
            found = [path]
        nothing = True
        for each in found:
            nothing = False
            yield each
        if nothing:
            yield path


def _below(folder: Path) -> Iterator[Path]:
    """All pictures below a folder, by their suffixes; sorted, without hidden ones and system folders. Then the folders that cannot be read,
    to be reported."""
    unreadable: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename))):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.lower() not in SYSTEM_FOLDERS)
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(place, name)
    yield from unreadable


def _places(images: Iterable[Path], out: Path) -> Iterator[tuple[Path, Path]]:
    """A unique path in `out` for each picture's files."""
    numbers: dict[str, Iterator[int]] = {}
    for path in images:
        stem = path.stem
        while stem in numbers:
            stem = f"{path.stem}-{next(numbers[path.stem])}"
        numbers[stem] = count(2)
        yield path, out / stem


def _parts(rows: Iterator[Row], length: int) -> Iterator[list[Row]]:
    while part := list(islice(rows, length)):
        yield part


def _in_order(function: Callable[[_T], _R], items: Iterable[_T], at_once: int) -> Iterator[_R]:
    """function(item) of each item, in order, computed in threads, with few items in memory; after an error no further item is started."""
    waiting: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == 2 * at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _as_text(row: Row) -> str:
    if row.error:
        return f"BAD {row.path}: {row.error}"
    return f"{row.path}: " + "; ".join(_words(answer, row.files) for answer in row.answers)


def _words(answer: Answer, files: dict[str, str]) -> str:
    kind = rendering_of(answer)
    written = ", ".join(files[name] for name in kind.files if name in files)
    return f"{kind.words(answer)} -> {written}" if written else kind.words(answer)


def _facts(row: Row) -> tuple[dict[str, str], dict[str, float], dict[str, Any]]:
    """({picture, error, columns of the answer, files}, {class: its share, probability or number of objects}, what JSON lines list)."""
    facts: dict[str, str] = {"picture": str(row.path)}
    values: dict[str, float] = {}
    listed: dict[str, Any] = {}
    if row.error:
        facts["error"] = row.error
    for answer in row.answers:
        kind = rendering_of(answer)
        facts |= kind.facts(answer)
        values |= kind.values(answer)
        listed |= kind.listed(answer)
    return facts | row.files, values, listed


def _as_json(row: Row) -> str:
    facts, _, listed = _facts(row)
    return json.dumps({**facts, **listed}, ensure_ascii=False)


def _columns(task: str, out: Path | None, features: bool) -> list[str]:
    kind = rendering_of_task(task)
    return ["picture", "error", *kind.columns, *(kind.files if out else ()), *(["features"] * features)]


def _as_csv(columns: list[str], classes: Sequence[str], row: Row) -> str:
    facts, values, _ = _facts(row)
    return _csv_line([*(facts.get(name, "") for name in columns), *(values.get(name, "") for name in classes)])


def _csv_line(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()
