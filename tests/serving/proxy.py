"""HAProxy in front of several servers, in the role of a Service with readiness probes."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from helpers import free_port

MISSING = "no haproxy here: apt-get install haproxy"
# Without `timeout check`, an answer later than `inter`, as on a busy machine, marks a server as down. A refused connection does so at once.
CONFIG = """
global
  stats socket {folder}/control level admin
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout check 5s
  option redispatch
  retries 3
  retry-on conn-failure
frontend http
  bind 127.0.0.1:{http}
  default_backend http
frontend grpc
  bind 127.0.0.1:{grpc} proto h2
  default_backend grpc
backend http
  balance leastconn
  option httpchk GET /v2/health/ready
{http_servers}
backend grpc
  balance leastconn
  option httpchk GET /v2/health/ready
{grpc_servers}
"""
SERVER = "  server {name} 127.0.0.1:{port} {proto} check port {probe} check-proto h1 inter 100ms fastinter 50ms rise 1 fall 1"


class Proxy:
    """Where it answers, and its commands."""

    def __init__(self, http_url: str, grpc_url: str, control: Path):
        self.http_url, self.grpc_url, self._control = http_url, grpc_url, control

    def command(self, text: str) -> str:
        """What HAProxy says to a command of its runtime API."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._control))
            connection.sendall(f"{text}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def statistics(self, name: str) -> list[dict[str, str]]:
        """Of a server, for each protocol."""
        header, *rows = self.command("show stat").lstrip("# ").strip().splitlines()
        parsed = [dict(zip(header.split(","), row.split(","), strict=False)) for row in rows]
        return [row for row in parsed if row["svname"] == name]

    def wait_until_ready(self, name: str) -> None:
        """Until the server's probe is answered."""
        self._wait(lambda: all(row["status"].startswith("UP") for row in self.statistics(name)))

    def drain(self, name: str) -> None:
        """Send no more requests to a server, and wait until it has answered those that it has."""
        for backend in ("http", "grpc"):
            self.command(f"set server {backend}/{name} state drain")
        self._wait(lambda: all(row["scur"] == "0" for row in self.statistics(name)))

    def readmit(self, name: str) -> None:
        """Undo `drain`: a server counts as soon as its probe is answered."""
        for backend in ("http", "grpc"):
            self.command(f"set server {backend}/{name} health down")
            self.command(f"set server {backend}/{name} state ready")

    @staticmethod
    def _wait(condition) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)


@contextmanager
def haproxy(folder: Path, ports: Mapping[str, Sequence[int]]) -> Iterator[Proxy]:
    """A proxy before the servers {name: (HTTP port, gRPC port)}, of which none needs to run."""
    http, grpc = free_port(), free_port()
    servers = {
        protocol: "\n".join(SERVER.format(name=name, port=both[i], proto=proto, probe=both[0]) for name, both in ports.items())
        for i, (protocol, proto) in enumerate((("http", ""), ("grpc", "proto h2")))
    }
    config = folder / "haproxy.cfg"
    text = CONFIG.format(folder=folder, http=http, grpc=grpc, http_servers=servers["http"], grpc_servers=servers["grpc"])
    config.write_text(text.lstrip())
    executable = shutil.which("haproxy")
    assert executable
    process = subprocess.Popen([executable, "-db", "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        proxy = Proxy(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", folder / "control")
        Proxy._wait((folder / "control").exists)
        yield proxy
    finally:
        process.terminate()
        process.wait()
