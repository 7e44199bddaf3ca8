"""Calls of a Triton server, shared by the sync and the asyncio client: its address, retries, and what errors mean."""

from __future__ import annotations

import errno
import random
import sys
import time
from dataclasses import dataclass
from http.client import HTTPException
from importlib import import_module
from typing import Any, Literal
from urllib.parse import urlsplit

from tritonclient.utils import InferenceServerException

from dreamteacher.errors import UserError, first_line

Protocol = Literal["http", "grpc"]

TIMEOUT = 120.0  # deadline of one call including retries, seconds
RETRIES = 4
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
