"""Retries, deadlines and errors of the client, behind a proxy that simulates network and server faults."""

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import numpy as np
import pytest
from client_samples import KINDS, by_torch, connect, pixels
from serving_samples import PARAMS
from tritonclient.utils import InferenceServerException

from dreamteacher.serving import connection, requests
from dreamteacher.serving.client import (
    DeadlineExceeded,
    Overloaded,
    Refused,
    Unavailable,
)
from dreamteacher.serving.connection import Address, Attempts, is_unavailable
from dreamteacher.serving.triton_repository import write_repository
from dreamteacher.serving.triton_server import running_triton


class Gate:
    """A port before the server's, which mistreats the first connections and passes the others on.

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
    with (
        connect(kind, protocol, f"127.0.0.1:{port}", retries=100, timeout=0.5) as client,
        pytest.raises(
            (DeadlineExceeded, Unavailable)  # the deadline may come while a connection is tried
        ),
    ):
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
    monkeypatch.setattr(connection.random, "uniform", lambda *_: pauses.append(1) or 0.0)
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
    error = connection.explain(InferenceServerException("Exceeds maximum queue size", status="503"), address, "cells", 1)
    assert isinstance(error, Overloaded) and isinstance(error, Unavailable) and "too busy" in str(error)


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
