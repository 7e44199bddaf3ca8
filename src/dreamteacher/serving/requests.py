"""From pictures to Triton requests, and from its responses to answers: plain functions shared by the sync and the asyncio client."""

from __future__ import annotations

import io
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreamteacher.data.decode import decode
from dreamteacher.errors import UserError
from dreamteacher.serving.answers import ANSWERS, Answer, to_answer
from dreamteacher.serving.connection import Address
from dreamteacher.serving.contract import Contract, prepare

Picture = np.ndarray | bytes | str | Path  # uint8 RGB (H, W, 3), the bytes of a file, or its path

FRESH_SECONDS = 60.0  # seconds for which a model's description is cached: a rollout may change the contract
BATCH_PIXELS = 5_000_000  # per request, 60 MB; servers limit the body (Triton 25: 64 MB)


@dataclass(frozen=True)
class Served:
    """A model as its server describes it. max_batch: pictures in a request. takes_files: it is a NAME-pictures. since: time.monotonic()."""

    model: str
    contract: Contract
    input: str
    outputs: tuple[str, ...]
    max_batch: int
    takes_files: bool
    since: float

    @property
    def is_fresh(self) -> bool:
        """Whether the cached description is still valid."""
        return time.monotonic() < self.since + FRESH_SECONDS


@dataclass(frozen=True)
class Request:
    """Pictures of one prepared shape. indices: theirs in the batch. images: float32 (N, 3, H', W'). prepared, sizes: (h, w) of each, as
    prepared without padding, and as it was. For a model that takes files: one, its bytes as uint8 (1, length), and no sizes."""

    indices: list[int]
    images: np.ndarray
    prepared: list[tuple[int, int]]
    sizes: list[tuple[int, int]]


def unknown_model(address: Address, model: str, index: Any) -> UserError | None:
    """The error for a model that is not in the server's index; None if it is."""
    models = sorted(entry["name"] for entry in (index["models"] if isinstance(index, dict) else index))
    if model in models:
        return None
    return UserError(f"the server at {address.url} has no model {model!r}; it has {', '.join(models) or 'none'}")


def read_config(address: Address, model: str, config: dict[str, Any]) -> Served:
    """A model's description from its configuration, as either protocol gives it.

    Raises:
        UserError: it has no preprocessing contract, or one of a later version.
    """
    config = config.get("config", config)
    parameters = {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}
    contract = Contract.from_metadata(parameters, f"model {model!r} at {address.url}")
    name, outputs = config["input"][0]["name"], tuple(output["name"] for output in config["output"])
    takes_files = name == "picture"
    if takes_files:
        outputs = tuple(output for output in outputs if output != "embedding")  # the embedding would cost a run of the backbone
    return Served(model, contract, name, outputs, max(1, int(config.get("max_batch_size", 1))), takes_files, time.monotonic())


def only_maps(served: Served, maps: Collection[str] | None) -> Served:
    """A backbone with only these maps and the embedding requested; None: all maps.

    Raises:
        UserError: there is no such map.
    """
    if maps is None:
        return served
    for name in maps:
        if name not in served.outputs:
            has = ", ".join(output for output in served.outputs if output != "embedding")
            raise UserError(f"model {served.model!r} has no map {name!r}; it has {has}")
    return replace(served, outputs=tuple(name for name in served.outputs if name in maps or name == "embedding"))


def read_picture(picture: Picture) -> np.ndarray:
    """uint8 RGB (H, W, 3).

    Raises:
        BadPicture: the bytes are no picture.
        OSError: the file cannot be read.
        UserError: an array of another type or shape.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise UserError(f"a picture is uint8 RGB (H, W, 3), not {picture.dtype} {picture.shape}; convert it")
        return picture
    return decode(picture if isinstance(picture, bytes) else Path(picture).read_bytes()).image


def read_file(picture: Picture) -> np.ndarray:
    """The bytes of a picture's file, uint8 (1, length); an array becomes a PNG.

    Raises:
        OSError: the file cannot be read.
        UserError: an array of another type or shape.
    """
    if isinstance(picture, np.ndarray):
        file = io.BytesIO()
        Image.fromarray(read_picture(picture)).save(file, "PNG")
        picture = file.getvalue()
    return np.frombuffer(picture if isinstance(picture, bytes) else Path(picture).read_bytes(), np.uint8)[None]


def to_requests(given: Sequence[Picture], served: Served) -> list[Request]:
    """Group a batch into as few requests as possible, by preprocessed shape, up to the server's limit and BATCH_PIXELS.

    Raises:
        BadPicture: a picture cannot be decoded, or would be too large after preprocessing.
        OSError, UserError: see `read_picture`.
    """
    if served.takes_files:
        return [Request([index], read_file(picture), [], []) for index, picture in enumerate(given)]
    pictures = [read_picture(picture) for picture in given]
    groups: dict[tuple[int, ...], list[tuple[int, np.ndarray, tuple[int, int]]]] = {}
    for index, picture in enumerate(pictures):
        images, prepared = prepare(picture, served.contract)
        groups.setdefault(images.shape, []).append((index, images, prepared))
    requests = []
    for shape, members in groups.items():
        length = max(1, min(served.max_batch, BATCH_PIXELS // (shape[2] * shape[3])))
        for first in range(0, len(members), length):
            indices, images, prepared = zip(*members[first : first + length], strict=True)
            sizes = [pictures[i].shape[:2] for i in indices]
            requests.append(Request(list(indices), np.concatenate(images), list(prepared), sizes))
    return requests


def to_answers(served: Served, request: Request, outputs: Mapping[str, np.ndarray]) -> dict[int, Answer]:
    """{index in the batch: answer} from copies of a request's outputs."""
    if served.takes_files:
        (index,), contract = request.indices, served.contract
        return {index: ANSWERS[contract.task].of_tensors({name: array[0] for name, array in outputs.items()}, contract)}
    return {
        index: to_answer(served.contract, {name: array[i] for name, array in outputs.items()}, request.prepared[i], request.sizes[i])
        for i, index in enumerate(request.indices)
    }
