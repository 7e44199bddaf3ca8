"""A local Triton: the tritonserver of the nvidia-pytriton wheel, without the rest of that wheel."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dreamteacher.errors import UserError
from dreamteacher.serving.triton_repository import check_repository
from dreamteacher.stage import RECORD, read_stage

HOST = "127.0.0.1"
CACHE = Path(".dreamteacher/triton")
START_SECONDS = 300  # large models warm up slowly
STOP_SECONDS = 20
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A Python that execs its arguments, with SIGINT on the parent's death, also by kill -9 (Linux only). Not a preexec_fn, which may hang
# if the parent has threads. The number is the parent's pid: it may have exited before the call.
DIES_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Triton:
    """Addresses and model names of a running server."""

    http_url: str
    grpc_url: str
    metrics_url: str
    models: list[str]
    process: subprocess.Popen[bytes]
    log: Path


def serve(repository: Path, http_port: int | None = None, grpc_port: int | None = None) -> None:
    """Serve `repository` in the foreground until Ctrl-C or SIGTERM, which stop it cleanly; prints its addresses once it is ready.

    Raises:
        UserError: it cannot start, or it exited by itself.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        for each in STOPPING:
            signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C must not leave a server behind
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in STOPPING}
    try:
        with running_triton(repository, http_port, grpc_port) as triton:
            print(f"models   {', '.join(triton.models)}")
            print(f"HTTP     http://{triton.http_url}")
            print(f"gRPC     {triton.grpc_url}")
            print(f"metrics  http://{triton.metrics_url}/metrics")
            print(f"log      {triton.log}")
            print(
                f"ready; try: dreamteacher predict IMAGE --url {triton.http_url} --model {triton.models[0]} (Ctrl-C stops the server)",
                flush=True,
            )
            code = triton.process.wait()
            raise UserError(f"tritonserver ended by itself with code {code}: {_complaints(triton.log)}")
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def running_triton(repository: Path, http_port: int | None = None, grpc_port: int | None = None) -> Iterator[Triton]:
    """Context with a ready Triton that serves all models of `repository` on localhost only; stopped when the block or this thread ends.

    Raises:
        UserError: the repository is broken, something is not installed, a port is taken, or the server does not start (with
            the server's own words).
    """
    if (repository.parent / RECORD).exists():
        read_stage(repository.parent)
    models = check_repository(repository)
    server, backends, environment = installation()
    ports = _ports(http_port, grpc_port, None)
    regions = f"triton_python_backend_shm_region_{secrets.token_hex(4)}_"  # a unique name, to clean up after a crash
    log = (CACHE / f"server-{ports[0]}.log").absolute()
    with _plainly_named(backends, repository.resolve()) as (backends, models_at):
        command = [str(server), f"--backend-directory={backends}", f"--model-repository={models_at}"]
        for protocol, port in zip(("http", "grpc", "metrics"), ports, strict=True):
            command += [f"--{protocol}-address={HOST}", f"--{protocol}-port={port}"]
        command += [
            f"--backend-config=python,shm-region-prefix-name={regions}",
            "--disable-auto-complete-config",
            "--metrics-config=summary_latencies=true",
            "--exit-timeout-secs=5",
        ]
        with log.open("wb") as file:
            # Its own session: Ctrl-C reaches every process of the terminal's group, and the stubs must outlive the server's stop.
            process = subprocess.Popen(
                [sys.executable, "-ISc", DIES_WITH_PARENT, str(os.getpid()), *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            urls = [f"{HOST}:{port}" for port in ports]
            _wait_until_ready(process, urls[0], urls[2], models, log)
            yield Triton(urls[0], urls[1], urls[2], models, process, log)
        finally:
            _stop(process, regions)
            if process.returncode == 0:  # kept after a failure
                log.unlink()


@contextmanager
def _plainly_named(*folders: Path) -> Iterator[tuple[Path, ...]]:
    """The folders, or links to them in a temporary folder if their names contain blanks or special characters: the python backend starts
    its processes with an unquoted bash command, and would hang silently.

    Raises:
        UserError: the name of the temporary folder contains some as well.
    """
    if all(map(_is_plain, folders)):
        yield folders
        return
    with tempfile.TemporaryDirectory(prefix="dreamteacher-triton-") as room:
        if not _is_plain(room):
            raise UserError(
                f"Triton's python backend takes no folder with blanks or signs in its name, such as {room}; set TMPDIR to another"
            )
        links = tuple(Path(room, str(number)) for number in range(len(folders)))
        for link, folder in zip(links, folders, strict=True):
            link.symlink_to(folder)
        yield links


def _is_plain(path: Path | str) -> bool:
    return shlex.quote(str(path)) == str(path)


def installation() -> tuple[Path, Path, dict[str, str]]:
    """A tritonserver, the folder of its backends, of which the python backend runs this Python, and its environment."""
    package, stub, libpython = find_server()
    server = package / "tritonserver"
    backend = server / "backends" / "python"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    backends = (CACHE / f"py{version}" / "backends").absolute()
    (backends / "python").mkdir(parents=True, exist_ok=True)
    # The backend looks for its stub in its own folder, where the wheel does not have it.
    for target in (backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", stub):
        link = backends / "python" / f".{target.name}.{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        link.replace(backends / "python" / target.name)
    libraries = [package.parent / "nvidia_pytriton.libs", libpython]
    environment = os.environ | {
        "LD_LIBRARY_PATH": ":".join([*(str(p) for p in libraries if p), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",  # the stub uses the packages of the first python3
    }
    environment.pop("PYTHONHOME", None)
    return server / "bin" / "tritonserver", backends, environment


def find_server() -> tuple[Path, Path, Path | None]:
    """The folder of pytriton, its python backend's stub for this Python, and the folder of this Python's library if the loader needs it.

    Raises:
        UserError: something is not installed.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    spec = importlib.util.find_spec("pytriton")
    if not spec or not spec.submodule_search_locations:
        raise UserError(
            "no tritonserver here; install it with: pip install --no-deps nvidia-pytriton==0.7.0 (Linux x86_64, glibc 2.34 or newer)"
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    stub = package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise UserError(f"nvidia-pytriton in {package} has no backend for Python {version}; pip install --no-deps nvidia-pytriton==0.7.0")
    return package, stub, _libpython_folder(version)


def _libpython_folder(version: str) -> Path | None:
    """The folder of this Python's shared library, which the backend's stub embeds; None: the loader finds it."""
    name = f"libpython{version}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"):
        if folder and (Path(folder) / name).exists():
            return Path(folder)
    if ctypes.util.find_library(f"python{version}") == name:
        return None
    raise UserError(
        f"Triton's python backend needs {name}, which this Python ({sys.base_prefix}) does not have; "
        f"install it: `apt-get install libpython{version}` on Debian and Ubuntu, "
        "or use a Python with a shared library (uv, conda, or pyenv with PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )


def _ports(*wanted: int | None) -> list[int]:
    """The requested ports, with a free one for each None."""
    sockets = []
    try:
        for port in wanted:
            probe = socket.socket()
            sockets.append(probe)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port or 0))
                probe.listen()  # otherwise a second socket could get the same port
            except (OSError, OverflowError) as error:
                raise UserError(f"port {port} cannot be used ({error}); name another, or none for a free one") from error
        return [probe.getsockname()[1] for probe in sockets]
    finally:
        for probe in sockets:
            probe.close()


def _wait_until_ready(process: subprocess.Popen[bytes], http: str, metrics: str, models: list[str], log: Path) -> None:
    """Wait until all models are ready and the metrics answer, which Triton serves last: after gRPC and HTTP."""
    urls = [f"{http}/v2/health/ready", *(f"{http}/v2/models/{model}/ready" for model in models), f"{metrics}/metrics"]
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise UserError(f"tritonserver does not start (code {process.returncode}): {_complaints(log)}; its log: {log}")
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):  # not listening yet, or not ready
            for url in urls:
                urllib.request.urlopen(f"http://{url}", timeout=5).close()
            return
        time.sleep(0.1)
    raise UserError(f"tritonserver was not ready after {START_SECONDS} s: {_complaints(log)}; its log: {log}")


def _complaints(log: Path) -> str:
    """The server's own error messages in one line."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [match[1].strip() for line in lines if (match := re.match(r'E\d{4} [^\]]*\] ?"?(.*?)"?$', line))]
    errors = [error for error in errors if not error.startswith("CudaDriverHelper")]  # always logged without a GPU
    errors = [error for error in errors if error.startswith("failed to load")] or errors or lines[-3:]
    return " | ".join(dict.fromkeys(error.split("\\n\\nAt:")[0] for error in errors))[:1000]


def _stop(process: subprocess.Popen[bytes], regions: str) -> None:
    """Stop the server, kill the rest of its session, and remove shared memory left by a crash or kill."""
    with suppress(subprocess.TimeoutExpired, ProcessLookupError):
        process.send_signal(signal.SIGINT)
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for region in SHARED_MEMORY.glob(f"{regions}*"):
        region.unlink(missing_ok=True)
