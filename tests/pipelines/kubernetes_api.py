"""A small Kubernetes API, in memory: TrainJobs as Kubeflow Trainer defines them, and their pods with logs."""

import json
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainjobs"
PODS = "/api/v1/namespaces/ml/pods"


@cache
def schema() -> dict[str, Any]:
    """The TrainJob's schema of Kubeflow Trainer 2.3 as its own package has it, closed: a field that it does not name is an error."""
    found = TrainerV1alpha1TrainJob.model_json_schema(by_alias=True)
    for name, kind in [("", found), *found["$defs"].items()]:
        if name.endswith("Quantity"):  # a wrapper of Python's client; on the wire it is a number or text
            found["$defs"][name] = {"type": ["integer", "string"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGTPE]i?)?$"}
        elif "properties" in kind:
            kind["additionalProperties"] = False
    return found


class KubernetesApi:
    """`jobs` by name, `pods` [{name, job, phase, log}]; `fail` maps "METHOD" to a list of statuses for the next requests."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: list[dict[str, str]] = []
        self.asked: list[str] = []
        self.fail: dict[str, list[int]] = {}
        self.on_get: Callable[[dict[str, Any]], None] = lambda job: None  # what the cluster does between two questions
        self.finalizing: dict[str, int] = {}  # job -> questions for which it is still being deleted
        api = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                url = urlsplit(self.path)
                api.asked.append(f"{self.command} {url.path}")
                status, answer = api.answer(self.command, url.path, parse_qs(url.query), body)
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _serve

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "KubernetesApi":
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        if self.fail.get(method):
            status = self.fail[method].pop(0)
            return status, {"kind": "Status", "code": status, "message": f"refused\n({status})"}
        if path.startswith(PODS):
            return self._pods(path.removeprefix(PODS), query)
        name = path.removeprefix(JOBS).strip("/")
        if method == "POST":
            return self._create(json.loads(body))
        if not name:
            key, _, value = query["labelSelector"][0].partition("=")
            return 200, {"items": [job for job in self.jobs.values() if job["metadata"]["labels"].get(key) == value]}
        if name not in self.jobs:
            return 404, {"kind": "Status", "code": 404, "message": f"trainjobs {name} not found"}
        job = self.jobs[name]
        if method == "DELETE":
            assert query["propagationPolicy"] == ["Foreground"]
            del self.jobs[name]
        elif name in self.finalizing:
            self.finalizing[name] -= 1
            if self.finalizing[name] == 0:
                del self.jobs[name], self.finalizing[name]
        else:
            self.on_get(job)
        return 200, job

    def _create(self, job: dict[str, Any]) -> tuple[int, Any]:
        try:
            jsonschema.validate(job, schema())
        except jsonschema.ValidationError as error:
            return 422, {"kind": "Status", "code": 422, "message": error.message}
        name = job["metadata"]["name"]
        if name in self.jobs:
            return 409, {"kind": "Status", "code": 409, "reason": "AlreadyExists", "message": f"{name} already exists"}
        self.jobs[name] = job
        return 201, job

    def _pods(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        if path.endswith("/log"):
            return 200, next(pod["log"] for pod in self.pods if pod["name"] == path.split("/")[1])
        job = query["labelSelector"][0].removeprefix("jobset.sigs.k8s.io/jobset-name=")
        pods = [pod for pod in self.pods if pod["job"] == job]
        return 200, {"kind": "PodList", "items": [{"metadata": {"name": p["name"]}, "status": {"phase": p["phase"]}} for p in pods]}


def finish(kind: str = "Complete", message: str = "") -> Callable[[dict[str, Any]], None]:
    """The job has ended in this way when it is next asked about."""

    def end(job: dict[str, Any]) -> None:
        job["status"] = {"conditions": [{"type": kind, "status": "True", "reason": f"JobSet{kind}", "message": message}]}

    return end
