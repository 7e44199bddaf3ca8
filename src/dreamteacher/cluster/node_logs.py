"""Parsing the log of a TrainJob's node: new lines, and the error that ended it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

SHOWN = 30  # last lines of a failed node to show
_RANK = re.compile(r"^\[rank(\d+)\]: ?")  # torch's prefix of each line of a process's last traceback
_REPORT = re.compile(r"^E\d{4} \d\d:\d\d:\d\d\.\d+ .*torch/distributed/elastic/.*failed \(exitcode")  # start of torchrun's traceback
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
    lines: list[str]  # last lines of the log before it, without torchrun's own report
    consequence: bool  # caused by the end of another node
    final: bool  # an error of the stage that the user must fix, so that a retry would fail too


def ending(text: str) -> Ending:
    """How the node with the log `text` ended: the processes' error, not torchrun's traceback, which comes last.

    The root cause is the first error that is not caused by another's: the stage's own line (`error: ...`), else a traceback's last line,
    else the signal that killed a process, else the last line.
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
    """A log without the timestamps of its lines. Lines without one come from the kubelet, for example if there is no log."""
    return "\n".join(line[match.end() :] for line in text.splitlines() if (match := _TIME.match(line)))


class Position:
    """Read position in the log of one pod, whose lines begin with a timestamp (Kubernetes' option `timestamps`)."""

    def __init__(self) -> None:
        self._last = (0.0, "")
        self._equal = 0  # lines read with this timestamp
        self._ended = False  # torchrun's report has begun

    def restart(self) -> None:
        """Reset for another run of the container."""
        self._ended = False

    def new(self, text: str) -> list[str]:
        """The new lines of `text`, without timestamps and without torchrun's report."""
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
