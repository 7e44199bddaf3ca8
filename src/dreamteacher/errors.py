"""UserError, the exception for users, and conversion of system errors to it."""

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """An error that the user can fix: one line that says what is wrong, where, and what to do.

    The command line prints only the message and exits with code 2; any other exception is a bug.
    """


class Interrupted(Exception):
    """Training was stopped by a signal; the command line exits with 128 + signum.

    The checkpoint of `step` is written, or `unsaved` says why it could not be.
    """

    def __init__(self, signum: int, step: int, unsaved: str = ""):
        then = f", which is not saved: {unsaved}" if unsaved else "; run the same command again to resume"
        super().__init__(f"stopped by signal {signum} at step {step}{then}")
        self.signum = signum
        self.step = step


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's text, truncated to `limit` characters; the name of its type if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


# Stage -> its group of settings, and the settings that reduce its memory.
_GROUPS = {
    "train-teacher": "teacher",
    "distill-features": "distill",
    "train-interpreter": "interpreter",
    "distill-labels": "labels",
    "finetune": "finetune",
    "assess": "finetune",
}
_LESS_MEMORY = {
    "ingest": "lower ingest.max_pixels, which is the largest picture that is decoded",
    "train-teacher": "raise teacher.accumulate, or lower teacher.batch_size, teacher.resolution or teacher.size",
    "distill-features": "raise distill.accumulate, or lower distill.batch_size, distill.resolution or student.width",
    "train-interpreter": "raise interpreter.accumulate, or lower interpreter.batch_size, interpreter.resolution or interpreter.width",
    "distill-labels": "raise labels.accumulate, or lower labels.batch_size, distill.resolution or student.width",
    "finetune": "raise finetune.accumulate, or lower finetune.batch_size, finetune.resolution or student.width",
    "assess": "lower finetune.batch_size, finetune.resolution, student.width, or evaluate.batch_size",
    "evaluate": "lower evaluate.batch_size, and ingest.short_side if single pictures are too large",
    "export-onnx": "lower export.size, or choose a smaller student.backbone",
}


@contextmanager
def resource_errors_in_one_line(command: str = "") -> Iterator[None]:
    """Convert out-of-memory, full disks, unwritable paths and missing requirements of torch.compile to a UserError.

    Libraries wrap such errors in their own types, so their text is checked too. `command` is the running stage, whose settings the message
    names.
    """
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        causes = (_ended_process(error, command), _too_little_memory(error, command), _no_compiling(error, command), _disk_trouble(error))
        message = next(filter(None, causes), None)
        if not message:
            raise
        raise UserError(message) from error


def _ended_process(error: Exception, command: str) -> str | None:
    """The message for a loader process, or another torchrun process, that died; None for other errors."""
    text = str(error)
    if match := re.search(r"DataLoader worker \(pid.*?\) (?:is killed by signal: ([^.]+)|exited unexpectedly)", text):
        group = _GROUPS.get(command, "STAGE")
        how = f"was killed ({match[1]})" if match[1] else "ended unexpectedly"
        if match[1] in (None, "Killed", "Bus error", "Aborted"):
            return (
                f"a loader process {how}, most likely because memory or /dev/shm is too small; lower {group}.workers (0 loads without "
                f"processes) or {group}.batch_size, or provide more of both: the same command resumes"
            )
        return f"a loader process {how}; {group}.workers = 0 loads without processes: the same command resumes"
    ended = re.search(r"closed by peer|reset by peer|Broken pipe|remote process exit", text)
    if ended and ("gloo" in text or "NCCL" in text):
        return "another of the processes that train together has ended; its own message says why"
    return None


def _no_compiling(error: Exception, command: str) -> str | None:
    """The message for an error of torch.compile, such as a missing C++ compiler; None for other errors."""
    of_compiler = type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.", "triton."))
    if not of_compiler and not re.search(r"torch\.compile|Failed to find C(\+\+)? compiler", str(error)):
        return None
    setting = f"{_GROUPS.get(command, 'STAGE')}.compile"
    return f"torch.compile failed ({first_line(error)}); set {setting} to false, or install what is missing (a C++ compiler, Python.h)"


_SHARED_MEMORY = r"unable to (mmap|write to file|allocate shared memory)|/dev/shm"
_NO_MEMORY = (
    r"out of memory|(not enough|insufficient) memory|can(no|')t allocate memory|failed to allocate memory|memory allocation"
    r"|bad_alloc|_ALLOC_FAILED|could not create a (memory|primitive(?! desc))"  # the last two: oneDNN
)


def is_memory_error(error: BaseException) -> bool:
    """Whether an allocation failed. Libraries report this in their own types, so the text is checked too."""
    text = str(error)
    if re.search(_SHARED_MEMORY, text) and "No space left" in text:
        return True
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or bool(re.search(_NO_MEMORY, text, re.I))


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room for a file, as the system or a library says it."""
    return _has(error, errno.ENOSPC) or _has(error, errno.EDQUOT)


def _has(error: BaseException, code: int) -> bool:
    """Whether the system raised `error` with this errno, or a library with the text of it."""
    return getattr(error, "errno", None) == code or os.strerror(code) in str(error)


def _too_little_memory(error: Exception, command: str) -> str | None:
    """The message for an allocation that failed, None for other errors."""
    if not is_memory_error(error):
        return None
    text = str(error)
    shared = re.search(_SHARED_MEMORY, text)
    if shared:
        group = _GROUPS.get(command, "STAGE")
        return (
            f"/dev/shm, through which loader processes hand over their pictures, is too small; lower {group}.workers (0 loads without "
            "processes), or make it larger (docker run --shm-size; in a pod an emptyDir of medium Memory): the same command resumes"
        )
    place = "GPU" if re.search(r"CUDA|CUBLAS|CUDNN|HIP|MPS|XPU|GPU", text) else "main"
    amount = re.search(r"(?:tried|unable) to allocate ([\d.]+) ?(\w+)", text, re.I)
    wanted = f" ({_readable(float(amount[1]), amount[2])} more was needed)" if amount else ""
    remedy = _LESS_MEMORY.get(command, "lower sizes and batch sizes in the settings")
    resume = "resumes" if command in _GROUPS else "works"
    return f"{place} memory is too small{wanted}; {remedy}; where there is more memory, the same command {resume}"


def _readable(amount: float, unit: str) -> str:
    if unit != "bytes":
        return f"{amount:.3g} {unit}"
    scaled = next(((amount / 1024**power, name) for power, name in ((3, "GiB"), (2, "MiB")) if amount >= 1024**power), (amount, "bytes"))
    return f"{scaled[0]:.3g} {scaled[1]}"


def _disk_trouble(error: Exception) -> str | None:
    """The message for a full disk or an unwritable path, None for other errors.

    "No such file" is about an output only if a folder or file was being created, as below /proc; otherwise an input is missing.
    """
    advice = {
        errno.ENOSPC: "free some space and run the same command again: it resumes",
        errno.EDQUOT: "free some of the quota and run the same command again: it resumes",
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
        if _has(error, code):
            where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
            return f"{where}{os.strerror(code)}; {remedy}"
    return None


def _is_making_something(error: Exception) -> bool:
    """Whether the error was raised in a function that only creates folders or files."""
    makers = {"mkdir", "makedirs", "write_text", "write_bytes"}
    return any(frame.name in makers for frame in traceback.extract_tb(error.__traceback__))
