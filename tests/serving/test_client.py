"""The client library against the real tritonserver, also behind a gate that misbehaves as networks and servers do."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from serving_samples import PARAMS, make_model
from tritonclient.utils import InferenceServerException

from dreamteacher.data.dataset import Sample
from dreamteacher.data.transforms import whole
from dreamteacher.errors import UserError
from dreamteacher.serving import requests, shared_memory
from dreamteacher.serving.client import (
    AsyncClient,
    BadPicture,
    Classification,
    Client,
    DeadlineExceeded,
    Refused,
    Segmentation,
    Unavailable,
)
from dreamteacher.serving.contract import VERSION, VERSION_KEY
from dreamteacher.serving.requests import Address, Attempts, is_unavailable, read_config
from dreamteacher.serving.shared_memory import Regions
from dreamteacher.serving.triton_repository import write_repository
from dreamteacher.serving.triton_server import running_triton
from dreamteacher.tasks.model import normalize
from helpers import PROJECT

KINDS = [(kind, protocol) for kind in ("sync", "async") for protocol in ("http", "grpc")]


class Waited:
    """An AsyncClient whose methods wait, in an event loop of its own."""

    def __init__(self, *arguments, **options):
        self.runner = asyncio.Runner()
        self.client = AsyncClient(*arguments, **options)

    def __getattr__(self, name):
        return lambda *arguments: self.runner.run(getattr(self.client, name)(*arguments))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self.runner.close()


def connect(kind, protocol, triton, model="cells", **options):
    url = triton if isinstance(triton, str) else getattr(triton, f"{protocol}_url")
    return {"sync": Client, "async": Waited}[kind](url, model, protocol=protocol, **options)


def pixels(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def by_torch(task, picture):
    model = make_model(task)
    with torch.no_grad():
        logits = model(normalize(whole(32)(Sample(picture, None, "a"))["image"][None], model.mean, model.std))[0]
    return logits[:, : picture.shape[0], : picture.shape[1]].argmax(0).numpy() if task == "segmentation" else logits.softmax(0).numpy()


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_answers_are_typed_and_those_of_the_model(triton, tmp_path, kind, protocol):
    picture = pixels(40, 45)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with connect(kind, protocol, triton) as client:
        for given in (picture, tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()):
            answer = client.predict(given)
            assert isinstance(answer, Segmentation) and answer.classes == ("background", "cell", "debris")
            assert (answer.mask == by_torch("segmentation", picture)).all() and answer.mask.dtype == np.uint8
            assert np.allclose(answer.shares, np.bincount(answer.mask.ravel(), minlength=3) / answer.mask.size)
        features = client.features(picture)
        assert list(features.maps) == ["stride4", "stride8", "stride16", "stride32"] and features.size == (40, 45)
        assert features.maps["stride8"].shape[1:] == (8, 8)
        assert np.allclose(features.embedding, features.maps["stride32"].mean((1, 2)), atol=1e-5)
    with connect(kind, protocol, triton, "stages") as client:
        answer = client.predict(pixels(32, 32))
        expected = by_torch("classification", pixels(32, 32))
        assert isinstance(answer, Classification) and np.abs(answer.probabilities - expected).max() < 1e-5
        assert answer.best == answer.classes[expected.argmax()]


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_a_model_that_takes_files_is_sent_the_files(triton, tmp_path, kind, protocol):
    picture = pixels(130, 200)
    Image.fromarray(picture).save(tmp_path / "a.webp", quality=50)
    for name in ("cells", "stages"):
        with connect(kind, protocol, triton, name) as plain, connect(kind, protocol, triton, f"{name}-pictures") as files:
            given = [picture, tmp_path / "a.webp", (tmp_path / "a.webp").read_bytes()]
            for expected, answer in zip(plain.predict_batch(given), files.predict_batch(given), strict=True):
                assert type(answer) is type(expected) and answer.classes == expected.classes
                if name == "cells":
                    assert (answer.mask == expected.mask).all() and np.allclose(answer.shares, expected.shares)
                else:
                    assert np.allclose(answer.probabilities, expected.probabilities, atol=1e-5)
            with pytest.raises(Refused, match=r"refuses .*picture is a text"):
                files.predict(b"no picture")


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_a_batch_is_answered_in_order_by_few_requests(triton, kind, protocol, monkeypatch):
    sent = []
    original = requests.to_input
    for module in ("client", "async_client"):
        monkeypatch.setattr(f"dreamteacher.serving.{module}.to_input", lambda *given: sent.append(len(given[2])) or original(*given))
    pictures = [pixels(32, 32 + 32 * (i % 4 == 0), i) for i in range(52)]
    with connect(kind, protocol, triton) as client:
        answers = client.predict_batch(pictures)
        assert client.predict_batch([]) == []
    assert sorted(sent) == [7, 13, 32]  # publish.max_batch_size is 32, and 13 pictures are wider
    for picture, answer in zip(pictures, answers, strict=True):
        assert answer.mask.shape == picture.shape[:2]
        assert (answer.mask == by_torch("segmentation", picture)).mean() > 0.999


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_what_is_no_picture_is_named(triton, tmp_path, kind, protocol):
    with connect(kind, protocol, triton) as client:
        with pytest.raises(BadPicture, match="empty"):
            client.predict(b"")
        with pytest.raises(FileNotFoundError):
            client.predict(tmp_path / "missing.png")
        with pytest.raises(UserError, match=r"a picture is uint8 RGB \(H, W, 3\), not float64 \(32, 32, 3\); convert it"):
            client.predict(np.zeros((32, 32, 3)))


class Gate:
    """A port before the server's, which treats the first connections as told and passes the others on.

    "close": closed at once. "503": answered so by a proxy. "hang": never answered.
    """

    def __init__(self, target, *behaviours):
        self.target, self.behaviours, self.seen, self.held = target, list(behaviours), 0, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            behaviour = self.behaviours[self.seen] if self.seen < len(self.behaviours) else "pass"
            self.seen += 1
            if behaviour == "close":
                connection.close()
            elif behaviour == "503":
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy")
                connection.close()
            elif behaviour == "hang":
                self.held.append(connection)
            else:
                host, port = self.target.split(":")
                server = socket.create_connection((host, int(port)))
                for source, sink in ((connection, server), (server, connection)):
                    threading.Thread(target=self.copy, args=(source, sink), daemon=True).start()

    def copy(self, source, sink):
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for each in [self.listener, *self.held]:
            each.close()


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_a_server_that_is_away_for_a_moment_costs_a_pause(triton, kind, protocol):
    behaviours = ["close", "503", "close"] if protocol == "http" else ["close", "close"]
    with Gate(getattr(triton, f"{protocol}_url"), *behaviours) as gate, connect(kind, protocol, gate.url) as client:
        assert (client.predict(pixels(32, 32)).mask == by_torch("segmentation", pixels(32, 32))).all()
        assert gate.seen > len(behaviours)


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_tries_end_with_one_line(kind, protocol):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    begin = time.monotonic()
    with connect(kind, protocol, f"127.0.0.1:{port}", retries=2) as client, pytest.raises(Unavailable, match="no Triton answers") as error:
        client.predict(pixels(32, 32))
    assert 0.15 <= time.monotonic() - begin < 10 and "\n" not in str(error.value)
    begin = time.monotonic()
    with connect(kind, protocol, f"127.0.0.1:{port}", retries=100, timeout=0.5) as client, pytest.raises(Unavailable):
        client.predict(pixels(32, 32))
    assert time.monotonic() - begin < 1.5


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_the_deadline_is_of_the_whole_call_and_the_client_goes_on(triton, kind, protocol):
    with Gate(getattr(triton, f"{protocol}_url"), "hang") as gate, connect(kind, protocol, gate.url, timeout=0.7) as client:
        begin = time.monotonic()
        with pytest.raises((DeadlineExceeded, Unavailable)):  # gRPC calls a connection that it cannot make unavailable
            client.predict(pixels(32, 32))
        assert time.monotonic() - begin < 3
        if protocol == "http":
            assert client.predict(pixels(32, 32)).mask.shape == (32, 32)


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_what_the_server_refuses_is_not_tried_again(triton, kind, protocol, monkeypatch):
    pauses = []
    monkeypatch.setattr(requests.random, "uniform", lambda *_: pauses.append(1) or 0.0)
    original = requests.prepare
    monkeypatch.setattr(requests, "prepare", lambda *given: (original(*given)[0][:, :2], (32, 32)))  # two channels
    with connect(kind, protocol, triton) as client, pytest.raises(Refused, match=r"refuses \(model 'cells'\): .*unexpected shape"):
        client.predict(pixels(32, 32))
    assert len(pauses) == 1  # computed, and not waited for


def test_only_unavailable_is_tried_again_with_pauses_that_double():
    queue = "[request id: 1] Exceeds maximum queue size"
    for error in (
        InferenceServerException(queue, status="503"),
        InferenceServerException(queue, status="StatusCode.UNAVAILABLE"),
        ConnectionRefusedError(111, "refused"),
        ConnectionResetError(104, "reset"),
    ):
        assert is_unavailable(error)
        attempts = Attempts(60, 4)
        pauses = [attempts.pause_after(error) for _ in range(5)]
        assert pauses[4] is None
        assert all(0.05 * 2**i <= pause <= 0.1 * 2**i for i, pause in enumerate(pauses[:4]))
    for error in (InferenceServerException("x", status="400"), InferenceServerException("x", status="500"), socket.gaierror(-2, "x")):
        assert Attempts(60, 4).pause_after(error) is None
    assert Attempts(0.01, 4).pause_after(ConnectionRefusedError(111, "x")) is None, "the deadline would pass"


def test_a_full_queue_is_said_to_be_one():
    address = Address.parse("127.0.0.1:1", "http")
    error = requests.explain(InferenceServerException("Exceeds maximum queue size", status="503"), address, "cells", 1)
    assert isinstance(error, Unavailable) and "too busy" in str(error)


def test_a_model_with_a_later_contract_is_refused(triton):
    with tritonclient.http.InferenceServerClient(triton.http_url) as server:
        config = server.get_model_config("cells")
    config["parameters"][VERSION_KEY]["string_value"] = str(VERSION + 1)
    with pytest.raises(UserError, match=r"model 'cells' at 127.0.0.1:1 has version 2 of the preprocessing contract.*update"):
        read_config(Address.parse("127.0.0.1:1", "http"), "cells", config)
    del config["parameters"]["mean"], config["parameters"][VERSION_KEY]
    with pytest.raises(UserError, match="does not say how pictures are prepared"):
        read_config(Address.parse("127.0.0.1:1", "http"), "cells", config)


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_a_client_that_goes_on_follows_a_rollout(triton, kind, protocol, monkeypatch):
    described = []
    original = requests.read_config
    for module in ("client", "async_client"):
        monkeypatch.setattr(f"dreamteacher.serving.{module}.read_config", lambda *given: described.append(given[1]) or original(*given))
    with connect(kind, protocol, triton) as client:
        client.predict(pixels(32, 32))
        client.predict(pixels(32, 32))
        assert described == ["cells"]
        monkeypatch.setattr(requests, "FRESH_SECONDS", 0)
        client.predict(pixels(32, 32))
        assert described == ["cells", "cells"]


def leftovers():
    return list(Path("/dev/shm").glob("dreamteacher-*"))


def regions_of(triton):
    with tritonclient.http.InferenceServerClient(triton.http_url) as server:
        return server.get_system_shared_memory_status()


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_large_requests_to_this_machine_go_by_shared_memory(triton, kind, protocol, monkeypatch):
    pictures = [pixels(32, 64, i) for i in range(12)]
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "LEAST_BYTES", 1 << 40)
        with connect(kind, protocol, triton) as client:
            expected = client.predict_batch(pictures)
            assert regions_of(triton) == []
    with connect(kind, protocol, triton) as client:
        for _ in range(2):
            assert all((a.mask == b.mask).all() for a, b in zip(client.predict_batch(pictures), expected, strict=True))
            assert len(regions_of(triton)) == 1
        with tritonclient.http.InferenceServerClient(triton.http_url) as server:
            server.unregister_system_shared_memory()  # as if it had been restarted
        assert all((a.mask == b.mask).all() for a, b in zip(client.predict_batch(pictures), expected, strict=True))
        client.predict_batch(pictures)
        assert len(regions_of(triton)) == 1
        assert leftovers() == []
    assert regions_of(triton) == []


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_without_shared_memory_requests_hold_their_bytes(triton, kind, protocol, monkeypatch):
    pictures = [pixels(32, 64, i) for i in range(12)]
    other = tritonclient.http if protocol == "http" else tritonclient.grpc

    def refused(*_, **__):
        raise InferenceServerException("Unable to open shared memory region", status="400")

    async def refused_later(*_, **__):
        refused()

    library = f"{other.__name__}.aio" if kind == "async" else other.__name__
    cls = sys.modules[library].InferenceServerClient if library in sys.modules else other.InferenceServerClient
    monkeypatch.setattr(cls, "register_system_shared_memory", refused_later if kind == "async" else refused)
    with connect(kind, protocol, triton) as client:
        assert len(client.predict_batch(pictures)) == 12
    monkeypatch.setattr(shared_memory.os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with connect(kind, protocol, triton) as client:
        assert len(client.predict_batch(pictures)) == 12
    assert regions_of(triton) == [] and leftovers() == []


def test_shared_memory_is_for_this_machine_only():
    assert [Regions(Address.parse(url, "http")).is_on for url in ("127.0.0.1:1", "localhost:1", "[::1]:1", "10.0.0.1:1", "a.b:1")] == [
        True, True, True, False, False,
    ]  # fmt: skip


LIGHT = """
import asyncio, sys
for name in ("torch", "torchvision", "mlflow", "onnx", "onnxruntime", "timm", "diffusers", "pydantic", "yaml", "webdataset"):
    sys.modules[name] = None
from dreamteacher.serving.client import AsyncClient, Client
http, grpc, picture = sys.argv[1:]
for url, protocol in ((http, "http"), (grpc, "grpc")):
    with Client(url, "stages", protocol=protocol) as client:
        print(client.predict(picture).best)
    async def main():
        async with AsyncClient(url, "stages", protocol=protocol) as client:
            print((await client.predict(picture)).best)
    asyncio.run(main())
"""


def test_the_client_works_where_nothing_of_training_is_installed(triton, tmp_path):
    Image.fromarray(pixels(32, 32)).save(tmp_path / "a.png")
    command = [sys.executable, "-c", LIGHT, triton.http_url, triton.grpc_url, str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = make_model("classification").classes[by_torch("classification", pixels(32, 32)).argmax()]
    assert done.stdout.split() == [expected] * 4
    assert done.stderr == ""


def test_the_extra_names_all_that_the_client_imports():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extra = {re.split(r"[\[>=<]", each)[0] for each in project["optional-dependencies"]["client"]}
    assert extra == {"numpy", "pillow", "tritonclient"}
    assert {each for each in project["dependencies"] if re.split(r"[\[>=<]", each)[0] in ("numpy", "pillow")} <= set(
        project["optional-dependencies"]["client"]
    )


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_no_request_fails_when_a_server_is_killed_and_started_again(models, tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    settings = PARAMS.publish.model_copy(update={"pictures": False})
    write_repository({"stages": models["stages"]}, tmp_path / "local", backend="python", settings=settings)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = {"http_port": one.getsockname()[1], "grpc_port": two.getsockname()[1]}
    picture, expected = pixels(32, 32), by_torch("classification", pixels(32, 32))
    done, stop = [], threading.Event()
    with ThreadPoolExecutor(8) as pool:
        with running_triton(tmp_path / "local", **ports) as first:
            client = connect("sync", protocol, first, "stages", retries=30, timeout=100)

            def work(_):
                while not stop.is_set():
                    done.append(client.predict(picture).probabilities)

            workers = [pool.submit(work, i) for i in range(8)]
            while len(done) < 50:
                time.sleep(0.01)
            os.kill(first.process.pid, signal.SIGKILL)
            first.process.wait()
        with running_triton(tmp_path / "local", **ports) as second:
            before = len(done)
            while len(done) < before + 100 and not any(worker.done() for worker in workers):
                time.sleep(0.05)
            stop.set()
            for worker in workers:
                worker.result()
            urlopen(f"http://{second.http_url}/v2/health/ready").close()
            client.close()
    assert np.abs(np.array(done) - expected).max() < 1e-5
