"""SIGTERM and Ctrl-C as a request to stop after the current step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stop(BaseException):
    """Raised by a signal inside `StopRequest.at_once`; a BaseException like KeyboardInterrupt, since libraries catch Exception."""


class StopRequest:
    """`signum` is 0 until SIGTERM or SIGINT comes."""

    def __init__(self, alone: bool) -> None:
        """`alone`: there is no other process that must stop at the same step."""
        self.signum = 0
        self._alone = alone
        self._waiting = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Context in which a signal raises `Stop`, for long waits that can be aborted safely."""
        try:
            self._waiting = self._alone
            if self._waiting and self.signum:
                raise Stop
            yield
        finally:
            self._waiting = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Note the signal; in a single process, a second Ctrl-C raises KeyboardInterrupt at once."""
        if self._alone and self.signum == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or signum
        if self._waiting:
            self._waiting = False  # another signal must not disturb writing the checkpoint
            raise Stop


@contextlib.contextmanager
def stop_request(alone: bool) -> Iterator[StopRequest]:
    """Catch the two signals inside the block.

    Python can handle signals only in the main thread; elsewhere no request ever comes.
    """
    request = StopRequest(alone)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {signum: signal.signal(signum, request.handle) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
