"""`check` against answers of a real Kubernetes API, recorded for each thing that can be wrong (record_check.py)."""

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import yaml
from check_scenarios import SCENARIOS

from dreamteacher.errors import UserError
from pipelines import check
from pipelines.__main__ import main
from pipelines.check import needs, pod, probe
from pipelines.compile import compile_pipeline
from pipelines.resources import FILE, Profile

ANSWERS: dict[str, dict[str, list[list[Any]]]] = json.loads(Path(__file__).with_name("check_answers.json").read_text())


class Replay:
    """A Kubernetes API that answers as the recorded one did, each question in turn, and its last answer again and again."""

    def __init__(self, scenario: str):
        recorded = {**ANSWERS["healthy"], **ANSWERS["healthy gpu"], **ANSWERS[scenario]}
        self.answers = {question: list(answers) for question, answers in recorded.items()}
        self.asked: list[str] = []
        replay = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def _serve(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                url = urlsplit(self.path)
                query = urlencode(sorted(parse_qsl(url.query)))
                question = f"{self.command} {url.path}" + (f"?{query}" if query else "")
                replay.asked.append(question)
                answers = replay.answers[question]
                status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _serve

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
