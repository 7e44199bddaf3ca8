"""What the log of a TrainJob's node says: which lines are new, and by which error it ended."""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

SHOWN = 30  # lines before the end of a failed node that are shown
_RANK = re.compile(r"^\[rank(\d+)\]: ?")  # torch begins each line of a process's last traceback with it
_REPORT = re.compile(r"^E\d{4} \d\d:\d\d:\d\d\.\d+ .*torch/distributed/elastic/.*failed \(exitcode")  # how torchrun's begins
_STOPPING = re.compile(r"^W\d{4} \d\d:\d\d:\d\d\.\d+ .*torch/distributed/elastic/.*closing signal")
_CONSEQUENCE = re.compile(
    r"another of the processes|closed by peer|reset by peer|Broken pipe|remote process exit|Dist(Backend|Network|Store)Error"
    r"|Rendezvous\w*Error|TCPStore|^stopped",
    re.I,
)
_TIME = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d) ?")
_SIGNALS = {
    -7: "SIGBUS: /dev/shm is too small",
    -9: "SIGKILL: most likely memory is too small",
    -11: "SIGSEGV",
    -15: "SIGTERM: it was stopped",
}


class Ending(NamedTuple):
    """How a node's process ended."""

    error: str  # in one line
    lines: list[str]  # of the log up to it, without torchrun's own report
    consequence: bool  # of the end of another node, whose error is the cause
    final: bool  # the stage itself says what the user must mend, so that a further try would fail alike


def ending(text: str) -> Ending:
    """How the node that wrote the log `text` ended, by the processes' errors and not by torchrun's traceback, which is last.

    The cause is the first that is no consequence of another's: the stage's own line (`error: ...`), else a traceback's last line, else the
    signal that killed a process. Without any of them it is the last line.
    """
    lines = text.splitlines()
    cut = next((i for i, line in enumerate(lines) if _REPORT.match(line) or _STOPPING.match(line)), len(lines))
    own, report = [line.rstrip() for line in lines[:cut]], lines[cut:]
    while own and not own[-1]:
        own.pop()
    cause = re.search(r"Root Cause.*?rank\s*: (\d+).*?exitcode\s*: (-?\d+)", "\n".join(report), re.S)
    code = int(cause[2]) if cause else None
    reported = list(dict.fromkeys(line.removeprefix("error: ") for line in own if line.startswith("error: "))) if code in (2, None) else []
    errors = reported + _raised(own)
    if error := next((each for each in errors if not _CONSEQUENCE.search(each)), None):
        return Ending(error, own[-SHOWN:], False, code == 2 and error in reported)
    if cause and code and code < 0:
        error = f"the process of rank {cause[1]} was killed by signal {-code}" + (f" ({_SIGNALS[code]})" if code in _SIGNALS else "")
        return Ending(error, own[-SHOWN:], code == -15, False)
    last = errors[0] if errors else next((line for line in reversed(own) if line), "")
    return Ending(last, own[-SHOWN:], bool(_CONSEQUENCE.search(last)), False)


def _raised(lines: list[str]) -> list[str]:
    """The last line of each process's last traceback, in the order in which the processes failed."""
    found: dict[str, str] = {}
    inside = set()
    for line in lines:
        match = _RANK.match(line)
        rank, words = (match[1], line[match.end() :]) if match else ("", line)
        if words.startswith("Traceback (most recent call last)"):
            inside.add(rank)
        elif rank in inside and words and not words[0].isspace():
            inside.remove(rank)
            found[rank] = words
    return list(found.values())


def plain(text: str) -> str:
    """A log without the times that begin its lines. Lines without one are the kubelet's words, such as that it has no log."""
    return "\n".join(line[match.end() :] for line in text.splitlines() if (match := _TIME.match(line)))


class Position:
    """How far the log of one pod has been read. Its lines begin with their time, as Kubernetes gives them with `timestamps`."""

    def __init__(self) -> None:
        self._last = (0.0, "")
        self._equal = 0  # lines read that have this time
        self._ended = False  # torchrun's report has begun

    def restart(self) -> None:
        """Another run of the container begins."""
        self._ended = False

    def new(self, text: str) -> list[str]:
        """The lines of `text`, without their times and without torchrun's report, that come after those of earlier calls."""
        fresh, equal = [], 0
        for line in text.splitlines():
            match = _TIME.match(line)
            if not match:  # as in `plain`
                continue
            time = (datetime.fromisoformat(match[1] + match[3]).timestamp(), (match[2] or "").ljust(9, "0"))
            if time > self._last:
                self._last, self._equal, equal = time, 0, 0
            equal += time == self._last
            if time == self._last and equal > self._equal:
                self._equal = equal
                words = line[match.end() :].rstrip()
                self._ended |= bool(_REPORT.match(words))
                if not self._ended:
                    fresh.append(words)
        return fresh
