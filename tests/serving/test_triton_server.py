import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http
from serving_samples import PARAMS
from tritonclient.utils import InferenceServerException

from dreamteacher.errors import UserError
from dreamteacher.serving import triton_server
from dreamteacher.serving.triton_repository import write_repository
from dreamteacher.serving.triton_server import running_triton

LIBRARIES = {"http": tritonclient.http, "grpc": tritonclient.grpc}
AS_JSON = {"http": {}, "grpc": {"as_json": True}}
SHARED_MEMORY = Path("/dev/shm")


def ask(triton, protocol, model, images, outputs=None):
    """The outputs of a served model, or all."""
    library = LIBRARIES[protocol]
    with library.InferenceServerClient(getattr(triton, f"{protocol}_url")) as client:
        inputs = library.InferInput("images", list(images.shape), "FP32")
        inputs.set_data_from_numpy(images)
        wanted = outputs and [library.InferRequestedOutput(name) for name in outputs]
        answer = client.infer(model, [inputs], outputs=wanted)
        names = outputs or [o["name"] for o in client.get_model_metadata(model, **AS_JSON[protocol])["outputs"]]
        return {name: answer.as_numpy(name) for name in names}


def assert_equal(answer, path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert sorted(answer) == sorted(names)
    for name, expected in zip(names, session.run(names, {"images": images}), strict=True):
        assert answer[name].shape == expected.shape
        assert np.abs(answer[name] - expected).max() < 1e-5
        assert np.ptp(expected) > 1e-3  # a constant would be equal too


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", ["cells", "cells-backbone", "stages"])
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (5, 3, 32, 32), (2, 3, 64, 96)])
def test_answers_equal_onnxruntime(triton, models, protocol, model, shape):
    images = pictures(*shape)
    assert_equal(ask(triton, protocol, model, images), models[model], images)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_32_clients_at_once_each_get_their_own_answer(triton, models, protocol):
    # Two picture sizes and three batch sizes, so that the server must not mix what it batches.
    batches = [pictures(1 + i % 3, 3, 32, 32 + 32 * (i % 2), seed=i) for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda images: ask(triton, protocol, "cells", images), batches))
    for images, answer in zip(batches, answers, strict=True):
        assert_equal(answer, models["cells"], images)


def test_requests_that_are_joined_each_get_the_outputs_that_they_want(triton, models):
    images = pictures(1, 3, 32, 32)
    wanted = [["embedding"], ["stride4", "embedding"], None, ["stride8"]] * 4
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda outputs: ask(triton, "grpc", "cells-backbone", images, outputs), wanted))
    assert_equal(answers[2], models["cells-backbone"], images)
    for outputs, answer in zip(wanted, answers, strict=True):
        assert set(answer) == set(outputs or answers[2])
        assert all(np.abs(answer[name] - answers[2][name]).max() < 1e-5 for name in answer)


def test_answers_leave_nothing_in_the_log(triton):
    """Or it fills the disk: with numpy 2, Triton 24.10 would write a traceback for each tensor."""
    ask(triton, "grpc", "cells-backbone", pictures(1, 3, 32, 32))
    before = triton.log.stat().st_size
    for _ in range(3):
        ask(triton, "grpc", "cells-backbone", pictures(1, 3, 32, 32))
    assert triton.log.stat().st_size == before
    assert "PyCapsule" not in triton.log.read_text()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(("shape", "message"), [((1, 4, 32, 32), "unexpected shape"), ((33, 3, 32, 32), "batch-size must be <= 32")])
def test_wrong_shape_is_refused_and_the_server_goes_on(triton, models, protocol, shape, message):
    with pytest.raises(InferenceServerException, match=message):
        ask(triton, protocol, "cells", pictures(*shape))
    images = pictures(1, 3, 32, 32)
    assert_equal(ask(triton, protocol, "cells", images), models["cells"], images)


@pytest.fixture
def single(models, tmp_path, monkeypatch):
    """A repository of one model in an empty project folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "local"
    write_repository({"cells": models["cells"]}, folder, backend="python", settings=PARAMS.publish.model_copy(update={"pictures": False}))
    return folder


def test_server_that_cannot_start_says_why(single):
    model = single / "cells" / "1" / "model.py"
    model.write_text(model.read_text().replace("import onnxruntime\n", "import onnxruntime_of_another_world\n"))
    with pytest.raises(UserError, match="No module named 'onnxruntime_of_another_world'") as error, running_triton(single):
        pass
    assert "cells" in str(error.value) and "\n" not in str(error.value)
    (log,) = Path(".dreamteacher/triton").glob("server-*.log")  # kept, because the error names it
    assert str(log) in str(error.value)


def test_server_that_crashes_while_it_starts_leaves_no_shared_memory(single, models, monkeypatch):
    write_repository({"stages": models["stages"]}, single, backend="python", settings=PARAMS.publish)  # with NAME-pictures: more processes
    monkeypatch.setattr(triton_server.secrets, "token_hex", lambda size: "crashes-at-start")  # other servers run beside this test
    made, stop = [], triton_server._stop

    def look_and_stop(process, regions):
        made.extend(SHARED_MEMORY.glob(f"{regions}*"))
        stop(process, regions)

    monkeypatch.setattr(triton_server, "_stop", look_and_stop)
    model = single / "cells" / "1" / "model.py"
    model.write_text(
        model.read_text().replace(
            "        self.session = ", "        import os, signal\n        os.kill(os.getppid(), signal.SIGKILL)\n        self.session = "
        )
    )
    with pytest.raises(UserError, match=r"does not start \(code -9\)"), running_triton(single):
        pass
    assert made and all("crashes-at-start" in region.name for region in made) and not left(made)


def test_folders_with_blanks_and_signs_in_their_names_are_served(single, tmp_path, monkeypatch):
    project = tmp_path / "Größe & Form (2) $x"
    project.mkdir()
    monkeypatch.chdir(project)
    shutil.copytree(single, project / "my models")
    with running_triton(Path("my models")) as triton:
        assert triton.models == ["cells"]
        assert ask(triton, "http", "cells", pictures(1, 3, 32, 32))
    monkeypatch.setattr(triton_server.tempfile, "tempdir", str(project))
    with pytest.raises(UserError, match="set TMPDIR to another"), running_triton(Path("my models")):
        pass


def test_taken_port_is_named(single):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be used"), running_triton(single, http_port=port):
            pass
    with pytest.raises(UserError, match=f"port {port} cannot be used"), running_triton(single, http_port=port, grpc_port=port):
        pass


def test_broken_repository_starts_no_server(single):
    config = single / "cells" / "config.pbtxt"
    config.write_text(config.read_text() + "unknown: 1\n")
    with pytest.raises(UserError, match='no field named "unknown"'), running_triton(single):
        pass


def test_missing_server_and_missing_libpython_say_what_to_install(single, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(triton_server.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="pip install --no-deps nvidia-pytriton"), running_triton(single):
            pass
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: None)
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(triton_server.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(UserError, match=r"apt-get install libpython3\.\d+"), running_triton(single):
        pass


def start_serving(repository, *options):
    command = [sys.executable, "-c", "import sys; from dreamteacher.cli import main; sys.exit(main())", "serve", str(repository), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("ready"):
            break
    return process, dict(line.split(maxsplit=1) for line in lines)


def server_of(process):
    """The id of the tritonserver below a `dreamteacher serve`."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert Path(f"/proc/{child}/comm").read_text().strip() == "tritonserver"
    return int(child)


def regions_of(server):
    """The shared memory of one server; others may run on this machine."""
    return set(re.findall(r"/dev/shm/triton_python_backend_shm_region_\S+", Path(f"/proc/{server}/maps").read_text()))


def left(held):
    return [region for region in held if Path(region).exists()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_at_the_given_port_and_stops_cleanly(single, number):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process, printed = start_serving(single, "--http-port", str(port))
    server = server_of(process)
    held = regions_of(server)
    assert printed["HTTP"].strip() == f"http://127.0.0.1:{port}" and printed["models"].strip() == "cells"
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/cells/ready").status == 200
    assert b"nv_inference_request_success" in urllib.request.urlopen(printed["metrics"].strip()).read()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    assert not Path(f"/proc/{server}").exists()
    assert held and not left(held)
    assert not list(Path(".dreamteacher/triton").glob("*.log"))


def test_a_server_is_ready_only_once_its_metrics_answer(tmp_path):
    requested = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            self.send_response(503 if self.path == "/metrics" and requested.count("/metrics") < 3 else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server, subprocess.Popen(["sleep", "60"]) as process:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"127.0.0.1:{server.server_port}"
        triton_server._wait_until_ready(process, url, url, ["cells"], tmp_path / "log")
        process.kill()
        server.shutdown()
    assert requested == ["/v2/health/ready", "/v2/models/cells/ready", "/metrics"] * 3


def test_killed_serve_takes_its_server_along(single):
    process, _ = start_serving(single)
    server = server_of(process)
    held = regions_of(server)
    process.kill()
    process.communicate(timeout=30)
    end = time.monotonic() + 20
    while time.monotonic() < end and (left(held) or server_lives(server) or children_of_session(server)):
        time.sleep(0.1)
    assert held and not left(held) and not server_lives(server) and not children_of_session(server)


def test_serve_says_when_the_server_dies_and_leaves_nothing_behind(single):
    process, _ = start_serving(single)
    server = server_of(process)
    held = regions_of(server)
    os.kill(server, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and "tritonserver ended by itself with code -9" in err and "Traceback" not in err
    end = time.monotonic() + 10
    while time.monotonic() < end and (left(held) or children_of_session(server)):
        time.sleep(0.1)
    assert held and not left(held) and not children_of_session(server)


def server_lives(pid):
    """Whether there is such a process and nobody has only to collect it."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def children_of_session(session):
    """Processes whose session is that of a server (its stubs)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def test_python_3_12_has_a_backend_too():
    package = Path(triton_server.importlib.util.find_spec("pytriton").submodule_search_locations[0])
    for version in ("3.11", "3.12"):
        assert (package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub").exists()


def test_backend_folder_of_another_installation_is_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stale = tmp_path / f".dreamteacher/triton/py{sys.version_info.major}.{sys.version_info.minor}/backends/python/libtriton_python.so"
    stale.parent.mkdir(parents=True)
    stale.symlink_to("/nowhere/libtriton_python.so")
    assert triton_server.installation()[1] == stale.parents[1]
    assert {path.name for path in stale.parent.iterdir() if path.resolve().exists()} == {
        "libtriton_python.so",
        "triton_python_backend_utils.py",
        "triton_python_backend_stub",
    }
