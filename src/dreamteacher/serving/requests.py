"""Triton requests and responses, as plain functions shared by the sync and the asyncio client."""

from __future__ import annotations

import errno
import io
import random
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from tritonclient.utils import InferenceServerException

from dreamteacher.data.decode import decode
from dreamteacher.errors import UserError, first_line
from dreamteacher.serving.answers import ANSWERS, Answer, to_answer
from dreamteacher.serving.contract import Contract, prepare

Protocol = Literal["http", "grpc"]
Picture = np.ndarray | bytes | str | Path  # uint8 RGB (H, W, 3), the bytes of a file, or its path

TIMEOUT = 120.0  # deadline of one call including retries, seconds
RETRIES = 4
FRESH_SECONDS = 60.0  # seconds for which a model's description is cached: a rollout may change the contract
AT_ONCE = 8  # concurrent requests of an AsyncClient's batch
CLOSE_SECONDS = 5.0  # for what is said to a server at the end
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds before the second try, and before any
GRPC_OPTIONS = [  # messages of any size, and fast reconnects for retries: gRPC's default is 1 s and more
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", int(1000 * FIRST_PAUSE / 2)),
    ("grpc.max_reconnect_backoff_ms", int(1000 * LONGEST_PAUSE)),
]
LOST = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE}
DISCONNECTED = ("HTTPConnectionClosed", "ServerDisconnectedError", "ClientPayloadError")  # of the HTTP libraries
BUSY = ("queue size", "timeout expired")  # in Triton's message for a full queue
BATCH_PIXELS = 5_000_000  # per request, 60 MB; servers limit the body (Triton 25: 64 MB)


class Unavailable(UserError):
    """All attempts failed: no server answered, or its queue was full."""


class Overloaded(Unavailable):
    """The server's queue was full in all attempts; with `retries=0` raised at once."""


class DeadlineExceeded(UserError):
    """The deadline passed, including retries."""


class Refused(UserError):
    """The server refuses this request; a retry would not help."""


@dataclass(frozen=True)
class Address:
    """Address of a server. url: as given by the user. place: HOST:PORT."""

    url: str
    place: str
    is_tls: bool
    protocol: Protocol

    @classmethod
    def parse(cls, url: str, protocol: Protocol) -> Address:
        """HOST:PORT, with or without a scheme; https and grpcs mean TLS.

        Raises:
            UserError: it is no address.
        """
        scheme, _, rest = url.rpartition("://")
        try:
            place = urlsplit(f"//{rest}")
            is_whole = bool(place.hostname) and place.port != 0
        except ValueError:
            is_whole = False
        if not is_whole:  # the HTTP client would fail, and fail again when closed
            raise UserError(f"--url {url} is no address; write HOST:PORT as `dreamteacher serve` prints it")
        return cls(url, rest.rstrip("/"), scheme in ("https", "grpcs"), protocol)

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, by its name."""
        host = urlsplit(f"//{self.place}").hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")

    def library(self, *, aio: bool = False) -> Any:
        """The part of tritonclient for the protocol, imported on first use: an installation may have one of them only.

        Raises:
            UserError: it is not installed.
        """
        name = f"tritonclient.{self.protocol}{'.aio' if aio else ''}"
        try:
            return import_module(name)
        except (ImportError, RuntimeError) as error:
            raise UserError(f"{name} cannot be imported ({first_line(error)}); pip install 'tritonclient[{self.protocol}]'") from error


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


class Attempts:
    """Retry policy of a call: exponential backoff with jitter, within the deadline."""

    def __init__(self, timeout: float, retries: int, end: float | None = None):
        self.timeout, self.retries = timeout, retries
        self._end = time.monotonic() + timeout if end is None else end
        self._done = 0

    def fresh(self) -> Attempts:
        """Reset the retries for the next request of the same call; the deadline stays."""
        return Attempts(self.timeout, self.retries, self._end)

    def left(self) -> float:
        """Seconds until the deadline, above 0.

        Raises:
            TimeoutError: it has passed.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def pause_after(self, error: Exception) -> float | None:
        """Seconds to wait before the next attempt; None: the error is final."""
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._done) * random.uniform(0.5, 1)
        self._done += 1
        may = is_unavailable(error) and self._done <= self.retries and time.monotonic() + pause < self._end
        return pause if may else None


def is_unavailable(error: BaseException) -> bool:
    """Whether a retry may succeed: nothing listens, the connection broke, or the queue is full."""
    if isinstance(error, InferenceServerException):
        status, words = str(error.status()), str(error.message())
        return status in ("502", "503") or ("UNAVAILABLE" in status and "DNS" not in words)
    return getattr(error, "errno", None) in LOST or type(error).__name__ in DISCONNECTED or "connection closed" in str(error)


def is_busy(error: BaseException) -> bool:
    """Whether the server refused the request because its queue is full."""
    return is_unavailable(error) and any(word in str(error) for word in BUSY)


def has_answered(error: BaseException) -> bool:
    """Whether the server has responded, so that it has finished with the request."""
    if not isinstance(error, InferenceServerException):
        return False
    return is_busy(error) or not (is_unavailable(error) or any(word in str(error.status()) for word in ("DEADLINE", "CANCELLED", "504")))


def is_foreseen(error: BaseException) -> bool:
    """Whether the error comes from the server or the connection: no connection, unknown host, invalid JSON or HTTP."""
    client_error: Any = getattr(sys.modules.get("aiohttp"), "ClientError", ())
    return isinstance(error, (InferenceServerException, OSError, ValueError, HTTPException, client_error))


def explain(error: Exception, address: Address, model: str, timeout: float) -> UserError:
    """The error of server or connection in one line."""
    words, status = str(error), ""
    if isinstance(error, InferenceServerException):
        words, status = str(error.message()), str(error.status() or "")
    if isinstance(error, TimeoutError) or "DEADLINE" in status:
        return DeadlineExceeded(f"the server at {address.url} gave no answer within {timeout:g} s (model {model!r}); allow more time")
    line = (words.strip().splitlines() or [type(error).__name__])[0][:300]
    if is_busy(error):
        return Overloaded(f"the server at {address.url} is too busy (model {model!r}: {line}); try again later, or send less at once")
    if status and "UNAVAILABLE" not in status and status not in ("502", "503"):
        return Refused(f"the server at {address.url} refuses (model {model!r}): {line}")
    name = {"http": "HTTP", "grpc": "gRPC"}[address.protocol]
    advice = f"start one (`dreamteacher serve`) and give its {name} address"
    return Unavailable(f"no Triton answers at {address.url} over {name} ({line[:200]}); {advice}")


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
