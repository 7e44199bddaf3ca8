"""SIGTERM and Ctrl-C as a wish to stop after the step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """`signum` is 0 until SIGTERM or SIGINT comes."""

    def __init__(self) -> None:
        self.signum = 0


@contextlib.contextmanager
def stop_request(insist: bool) -> Iterator[StopRequest]:
    """Catch the two signals inside the block; with `insist`, a second Ctrl-C raises KeyboardInterrupt at once.

    Outside the main thread Python cannot catch signals: there the request never comes.
    """
    request = StopRequest()

    def handle(signum: int, frame: FrameType | None) -> None:
        if insist and request.signum == signum == signal.SIGINT:
            raise KeyboardInterrupt
        request.signum = request.signum or signum

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
