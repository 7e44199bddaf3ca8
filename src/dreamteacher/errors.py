"""The one exception that a user is meant to read."""

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do.

    The command line prints the message alone and exits with code 2; any other exception is a defect of ours.
    """


class Interrupted(Exception):
    """Training was stopped by a signal after its checkpoint was written; the command line exits with 128 + signum."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"stopped by signal {signum} at step {step}; start the same command again to resume")
        self.signum = signum
        self.step = step


@contextmanager
def disk_errors_in_one_line() -> Iterator[None]:
    """Full disks, quotas and places that cannot be written are the user's to mend. Libraries wrap them, so the text is looked at too.

    "No such file" is of an output only where a folder or file was being made, as below /proc; elsewhere an input is missing.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        advice = {
            errno.ENOSPC: "free some space and start the same command again: it resumes",
            errno.EDQUOT: "free some of the quota and start the same command again: it resumes",
            errno.EACCES: "grant the permission or name another folder",
            errno.EPERM: "grant the permission or name another folder",
            errno.EROFS: "name a folder on a writable file system",
            errno.EFBIG: "name a folder on a file system that takes larger files",
            errno.ENOTDIR: "name another folder",
            errno.EEXIST: "name another folder",
            errno.EISDIR: "name a file",
        }
        if _is_making_something(error):
            advice[errno.ENOENT] = "it cannot be made there: name another place"
        for code, remedy in advice.items():
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
                raise UserError(f"{where}{os.strerror(code)}; {remedy}") from error
        raise


def _is_making_something(error: Exception) -> bool:
    """Whether the error came up in a function that only makes folders or files."""
    makers = {"mkdir", "makedirs", "write_text", "write_bytes"}
    return any(frame.name in makers for frame in traceback.extract_tb(error.__traceback__))
