"""`dreamteacher follow`: deploy at once on MLflow's webhooks, instead of minutes later by the CronJob.

A delivery only says that an alias moved. The version is read from MLflow, as in `dreamteacher deploy --follow`, so a delayed or repeated
delivery can only deploy the version that has the alias now.

The signature is that of MLflow 3.3 and later (https://mlflow.org/docs/latest/ml/webhooks), after https://www.standardwebhooks.com.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dreamteacher.errors import UserError
from dreamteacher.serving.deployment import follow

log = logging.getLogger(__name__)
SECRET = "DREAMTEACHER_WEBHOOK_SECRET"  # environment variable
ENTITY, ACTION = "model_version_alias", "created"  # moving an alias creates it as well
FRESH = 300.0  # seconds for which a delivery is valid; MLflow's own retries end within two minutes
LONGEST = 64 * 1024  # bytes of a body


class Refused(Exception):
    """An invalid delivery, with the HTTP status of the response."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Verifier:
    """Verifies signature, age and uniqueness of deliveries. Not thread-safe."""

    def __init__(self, secret: str, clock: Callable[[], float] = time.time) -> None:
        self._secret, self._clock = secret.encode(), clock
        self._seen: dict[str, float] = {}  # id of a delivery -> when it was signed, oldest first

    def check(self, headers: Any, body: bytes) -> str:
        """The id of the delivery. `headers` is a mapping that ignores case.

        Raises:
            Refused: the signature is invalid, or it is older than FRESH, from the future, or already processed.
        """
        names = ("X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature")
        delivery, signed, signature = (headers.get(name, "") for name in names)
        if not delivery or "." in delivery or not signed.isdecimal():  # with a dot, the same signed text could mean another id and time
            raise Refused(HTTPStatus.UNAUTHORIZED, f"not signed; needs {', '.join(names)}")
        digest = hmac.new(self._secret, f"{delivery}.{signed}.".encode() + body, hashlib.sha256).digest()
        if not hmac.compare_digest(f"v1,{base64.b64encode(digest).decode()}".encode(), signature.encode()):
            raise Refused(HTTPStatus.UNAUTHORIZED, f"signed with another secret than {SECRET}")
        age = self._clock() - int(signed)
        if abs(age) > FRESH:
            raise Refused(HTTPStatus.UNAUTHORIZED, f"signed {age:.0f} s ago; at most {FRESH:.0f} are allowed (check the clocks)")
        self._seen = {each: when for each, when in self._seen.items() if self._clock() - when <= FRESH}
        if delivery in self._seen:
            raise Refused(HTTPStatus.UNAUTHORIZED, f"delivery {delivery} is done already")
        return delivery

    def done(self, delivery: str) -> None:
        """Mark `delivery` as processed. A failed one is not, since MLflow sends it again."""
        self._seen[delivery] = self._clock()


def alias_of(body: bytes) -> tuple[str, str] | None:
    """(registered model, alias) of a delivery about a set alias; None for other events.

    Raises:
        Refused: it is not an MLflow event.
    """
    try:
        event = json.loads(body)
        if (event["entity"], event["action"]) != (ENTITY, ACTION):
            return None
        name, alias = event["data"]["name"], event["data"]["alias"]
    except (ValueError, KeyError, TypeError, RecursionError):
        name = alias = None
    if not (isinstance(name, str) and isinstance(alias, str)):
        raise Refused(HTTPStatus.BAD_REQUEST, "no event of MLflow")
    return name, alias


def server_of(secret: str, namespace: str | None = None, *, host: str = "", port: int = 8080) -> ThreadingHTTPServer:
    """A listening server that deploys on POSTed deliveries once `serve_forever` is called. GET /health answers 200.

    Args:
        secret: the webhook's secret in MLflow.
        namespace: of the Deployments; None as for `deploy`.
        host: on which it listens; "" for all.
        port: 0 for a free one.
    """
    server = ThreadingHTTPServer((host, port), _Handler)
    server.verifier = Verifier(secret)  # type: ignore[attr-defined]
    server.namespace = namespace  # type: ignore[attr-defined]
    server.one_by_one = threading.Lock()  # type: ignore[attr-defined]
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version, server_version, sys_version = "HTTP/1.1", "dreamteacher", ""
    timeout = 10  # seconds without a byte

    def do_GET(self) -> None:
        self._answer(HTTPStatus.OK if self.path == "/health" else HTTPStatus.NOT_FOUND, "")

    def do_POST(self) -> None:
        try:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > LONGEST:
                self.close_connection = True  # the body is not read
                raise Refused(HTTPStatus.BAD_REQUEST, f"needs a Content-Length of at most {LONGEST}")
            body = self.rfile.read(int(length))
            with self.server.one_by_one:  # type: ignore[attr-defined]
                status, text = self._deliver(body)
        except Refused as refused:
            status, text = refused.status, str(refused)
            log.warning("refused a delivery from %s: %s", self.client_address[0], text)
        self._answer(status, text)

    def _deliver(self, body: bytes) -> tuple[HTTPStatus, str]:
        verifier: Verifier = self.server.verifier  # type: ignore[attr-defined]
        delivery = verifier.check(self.headers, body)
        moved = alias_of(body)
        try:
            lines = follow(*moved, self.server.namespace) if moved else []  # type: ignore[attr-defined]
        except UserError as error:  # MLflow retries after 1, 2 and 4 seconds; after that the CronJob takes over
            log.warning("%s", error)
            return HTTPStatus.SERVICE_UNAVAILABLE, str(error)
        verifier.done(delivery)
        for line in lines:
            log.info("%s", line)
        return HTTPStatus.OK, "\n".join(lines) or "nothing here follows it"

    def _answer(self, status: HTTPStatus, text: str) -> None:
        data = f"{text}\n".encode() if text else b""
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Log only deployments and refusals, not probes."""


def run(namespace: str | None, port: int) -> None:
    """Run the webhook receiver until a signal comes.

    Raises:
        UserError: DREAMTEACHER_WEBHOOK_SECRET is not set, or the port is taken.
    """
    secret = os.environ.get(SECRET, "")
    if not secret:
        raise UserError(f"{SECRET} is not set; it is the secret that the webhook has in MLflow (`create_webhook(..., secret=...)`)")
    try:
        server = server_of(secret, namespace, port=port)
    except OSError as error:
        raise UserError(f"cannot listen on port {port}: {error.strerror}; choose another with --port") from error
    with server:
        log.info("waiting for MLflow's webhooks on port %s", server.server_port)
        server.serve_forever()
