"""A local HTTP server for fake APIs: returns the result of a function as JSON or text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Request:
    """A request; `headers` are case-insensitive."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes
    headers: Any


class Handler(BaseHTTPRequestHandler):
    """Passes requests to `answer` of its server."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        self.respond(Request(self.command, url.path, parse_qs(url.query), body, self.headers))

    def respond(self, request: Request) -> None:
        """Send what `answer` gives: a status, and text or what becomes JSON."""
        status, answer = self.server.answer(request)  # type: ignore[attr-defined]
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve


class JsonServer:
    """Serves at `url` until `close`, or the end of a `with` block."""

    def __init__(self, answer: Callable[[Request], tuple[int, Any]], handler: type[Handler] = Handler):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.answer = answer  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def __enter__(self) -> JsonServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
