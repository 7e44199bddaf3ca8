"""Retries during outages of MLflow, a git server or S3.

External effects come after days of training, so they wait for the end of an outage. Only transient errors are retried: no connection, DNS
failure, timeout, too many requests, server errors. A wrong password or address fails at once.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from dreamteacher.errors import UserError, first_line

log = logging.getLogger(__name__)
MINUTES = "DREAMTEACHER_WAIT_MINUTES"  # environment variable: maximum wait for the end of an outage
DEFAULT = 30.0
FIRST, LONGEST = 10.0, 300.0  # seconds between attempts, doubling

# Texts of git, DVC and the clients of MLflow, S3 and databases; they wrap such errors in many types, so the text is matched.
_OUTAGE = re.compile(
    r"connection (was )?(refused|reset|aborted|closed|died|timed out)|closed connection|broken pipe|connectionerror"
    r"|(could ?n[o']t|cannot|unable to) connect|failed to connect to \S+ port|failed to establish"
    r"|could not resolve|failed to resolve|could not translate host|name resolution|name or service not known|no address associated"
    r"|network is unreachable|no route to host|host is down"
    r"|timed out|\w*timeout(error)?:|timeout expired|timeout on endpoint|operation too slow"
    r"|hung up unexpectedly|early eof|unexpected disconnect|empty reply|incomplete ?read"
    r"|(too many|returned error:|error code|http|error occurred \() ?(429|5(?!01|05)\d\d)"
    r"|slow ?down|service ?unavailable|bad gateway|gateway time-?out|too many requests|request ?rate|throttling|internalerror"
    r"|requesttimeout|database is locked",
    re.I,
)
_FINAL = re.compile(
    r"certificate|wrong.version.number|permission denied|authentication failed|invalid username|access ?denied|access ?key|signature"
    r"|forbidden|unauthori[sz]ed|(error|code|status|http)[: (]*40[134]|no ?such ?bucket|find remote ref|fast-forward|\[rejected\]",
    re.I,
)
# How MLflow lists files that could not be downloaded, before the first one's error.
_FAILED_FILES = re.compile(r"The following failures occurred while downloading .*\n##### File .* #####\n")
P = ParamSpec("P")
T = TypeVar("T")


class NoAnswer(UserError):
    """A service does not answer; retried by `patient` functions."""


class GivenUp(UserError):
    """A service did not answer within the maximum wait; not to be retried again."""


def is_outage(text: str) -> bool:
    """Whether an error's text indicates a transient error."""
    return bool(_OUTAGE.search(text)) and not _FINAL.search(text)


def reason(error: BaseException) -> tuple[str, bool]:
    """The cause of `error` in one line, and whether it is transient. For outages and databases the first cause is the most informative."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    outage = is_outage("\n".join(f"{type(each).__name__}: {each}" for each in chain))
    of_database = any(type(each).__module__.startswith("sqlalchemy.") for each in chain)  # whose text begins with hints and SQL
    cause = chain[-1] if outage or of_database else error
    return first_line(Exception(_FAILED_FILES.sub("", str(cause))) if _FAILED_FILES.match(str(cause)) else cause), outage


def refusal(error: BaseException, text: Callable[[str], str]) -> UserError:
    """The exception to raise for a client's error: a NoAnswer if it is transient. `text` makes the message from a reason."""
    why, outage = reason(error)
    return (NoAnswer if outage else UserError)(text(why))


def wait_minutes() -> float:
    """Maximum wait for the end of an outage: DREAMTEACHER_WAIT_MINUTES, default 30; 0: no retries.

    Raises:
        UserError: it is no number from 0 on.
    """
    text = os.environ.get(MINUTES) or str(DEFAULT)
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < float("inf"):
        raise UserError(f"{MINUTES} = {text} is not a number of minutes; set 0 (no retries) or more")
    return minutes


def patient(function: Callable[P, T]) -> Callable[P, T]:
    """Retry the idempotent `function` while it raises NoAnswer, with exponential backoff and log messages.

    Raises:
        GivenUp: no answer within wait_minutes().
    """

    @functools.wraps(function)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> T:
        minutes, begin, pause = wait_minutes(), time.monotonic(), FIRST
        while True:
            try:
                return function(*args, **kwargs)
            except NoAnswer as error:
                left = begin + minutes * 60 - time.monotonic()
                if left <= 0:
                    waited = f"; waited {minutes:g} minutes for it ({MINUTES})" if minutes else ""
                    raise GivenUp(f"{error}{waited}") from error
                pause = min(pause, left)
                log.warning("%s; next try in %.0f s, for %.0f more minutes at most (Ctrl-C ends it)", error, pause, left / 60)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST)

    return waiting
