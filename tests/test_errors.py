"""Errors of disk and memory that become a UserError, and others that do not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dreamteacher import cli, errors
from dreamteacher.errors import UserError, first_line, resource_errors_in_one_line
from dreamteacher.settings.table import describe


@pytest.mark.parametrize("make", [lambda: Path("/proc/x/y").mkdir(parents=True), lambda: Path("/proc/y").write_text("")])
def test_a_folder_that_cannot_be_written_is_named(make: Callable[[], object]) -> None:
    with (
        pytest.raises(UserError, match=r"^/proc/\w: No such file or directory; it cannot be made there: name another place"),
        resource_errors_in_one_line(),
    ):
        make()


def test_a_missing_input_is_not_called_an_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), resource_errors_in_one_line():
        (tmp_path / "missing").read_text()


def test_a_command_says_where_it_cannot_write(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamteacher.serving.predict.predict", lambda images, url, model, out, **_: out.mkdir(parents=True))
    assert cli.main(["predict", "a.png", "--url", "127.0.0.1:9", "--out", "/proc/foo"]) == 2
    assert capsys.readouterr().err.startswith("error: /proc/foo: No such file or directory; it cannot be made there")


def message(error: Exception, command: str = "finetune") -> str:
    with pytest.raises(UserError) as caught, resource_errors_in_one_line(command):
        raise error
    assert "\n" not in str(caught.value)
    return str(caught.value)


WORKER = "DataLoader worker (pid 7) is killed by signal: "
IN_WORKER = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ...\n"
MESSAGES = {  # what torch, oneDNN, numpy, gloo and the system say -> how the line begins
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes. "
        "Error code 12 (Cannot allocate memory)"
    ): "main memory is too small (8 GiB more was needed); ",
    RuntimeError(
        "CUDA out of memory. Tried to allocate 20.50 MiB. GPU 0 has a total capacity of 79.11 GiB"
    ): "GPU memory is too small (20.5 MiB more was needed); ",
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"): "GPU memory is too small; ",
    RuntimeError("could not create a memory object"): "main memory is too small; ",
    RuntimeError("could not create a primitive"): "main memory is too small; ",
    MemoryError(): "main memory is too small; ",
    MemoryError("std::bad_alloc"): "main memory is too small; ",
    MemoryError("Unable to allocate 3.1 GiB for an array with shape (9, 9)"): "main memory is too small (3.1 GiB more was needed); ",
    OSError(12, "Cannot allocate memory"): "main memory is too small; ",
    RuntimeError(f"{IN_WORKER}MemoryError: std::bad_alloc"): "main memory is too small; ",
    RuntimeError(f"{IN_WORKER}unable to mmap 67 bytes: No space left on device (28)"): "/dev/shm, through which loader processes",
    RuntimeError(f"{WORKER}Killed. "): "a loader process was killed (Killed), most likely because memory or /dev/shm is too small; ",
    RuntimeError(f"{WORKER}Bus error. It is possible that ..."): "a loader process was killed (Bus error), most likely because memory",
    RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"): "a loader process ended unexpectedly, most likely because memory",
    RuntimeError(f"{WORKER}Segmentation fault. "): "a loader process was killed (Segmentation fault); finetune.workers = 0",
    RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:7"): "another of the processes",
}


@pytest.mark.parametrize(("error", "beginning"), MESSAGES.items())
def test_too_little_memory_is_one_line(error: Exception, beginning: str) -> None:
    assert message(error).startswith(beginning)


def test_what_torch_compile_lacks_is_one_line() -> None:
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    lacks = "set finetune.compile to false, or install what is missing (a C++ compiler, Python.h)"
    without_compiler = message(InductorError(InvalidCxxCompiler(), None))
    assert without_compiler.startswith("torch.compile failed (InvalidCxxCompiler: No working C++ compiler found ")
    assert without_compiler.endswith(lacks)
    assert message(RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")).endswith(lacks)
    assert message(InductorError(RuntimeError("CUDA out of memory."), None)).startswith("GPU memory is too small; ")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
        RuntimeError("shape '[2]' is invalid for input of size 3"),
        ConnectionResetError("Connection reset by peer"),
    ],
)
def test_a_defect_stays_one(error: Exception) -> None:
    with pytest.raises(type(error)), resource_errors_in_one_line("finetune"):
        raise error


@pytest.mark.parametrize("command", [name for name in cli.STAGES if name not in ("publish", "report")])
def test_the_line_names_settings_that_there_are_and_what_then(command: str) -> None:
    names = {name for name, _, _ in describe()}
    line = message(MemoryError(), command)
    settings = {word.strip(",;") for word in line.split() if "." in word.strip(",;.")}
    assert settings
    assert settings <= names
    if cli.STAGES[command].trains:
        assert any(name.endswith(".accumulate") for name in settings)
        assert line.endswith("where there is more memory, the same command resumes")


def test_every_stage_that_trains_names_its_own_group() -> None:
    assert set(errors._GROUPS) == {name for name, stage in cli.STAGES.items() if stage.trains} | {"assess"}
    assert {name.partition(".")[0] for name, _, _ in describe() if name.endswith(".workers")} == set(errors._GROUPS.values())


def test_the_first_line_of_an_error_is_short_and_never_empty() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(ValueError("x" * 999)) == "x" * 200
    assert first_line(ValueError()) == "ValueError"
