"""A small KFP API (v2beta1), in memory: what kfp.Client asks of it for pipelines, versions, experiments, runs and schedules."""

import json
import re
from email.parser import BytesParser
from typing import Any

import yaml

from json_server import JsonServer, Request

ROOT = "/apis/v2beta1"
COLLECTIONS = {"pipelines": "pipeline_id", "experiments": "experiment_id", "runs": "run_id", "recurringruns": "recurring_run_id"}
ANSWERS = {"versions": "pipeline_versions", "recurringruns": "recurringRuns"}  # name of a list in an answer, if it is another
STATES = {"disable": "DISABLE", "enable": "ENABLE"}


class KfpApi:
    """Objects by collection; `asked` holds (method, path) of each request. `fail` maps a part of "METHOD PATH" to (status, message).

    has_pages: it is asked through the user interface, which has a page at /.
    """

    def __init__(self, page: int = 2):
        self.has_pages = True
        self.page = page  # entries of an answer at most, so that a client which does not turn pages is found out
        self.kept: dict[str, dict[str, dict]] = {name: {} for name in [*COLLECTIONS, "versions"]}
        self.asked: list[tuple[str, str]] = []
        self.fail: dict[str, tuple[int, str]] = {}
        self.tokens: set[str | None] = set()

    def __enter__(self):
        self._server = JsonServer(self._serve)
        self.url = self._server.url
        return self

    def __exit__(self, *_):
        self._server.close()

    def _serve(self, asked: Request) -> tuple[int, Any]:
        self.asked.append((asked.method, asked.path))
        self.tokens.add(asked.headers.get("Authorization"))
        query = {key: values[0] for key, values in asked.query.items()}
        return self.answer(asked.method, asked.path.removeprefix(ROOT), query, asked.body, asked.headers)

    def answer(self, method: str, path: str, query: dict, body: bytes, headers) -> tuple[int, dict]:
        for part, (status, message) in self.fail.items():
            if part in f"{method} {path}":
                return status, {"code": 13, "message": message, "details": []}
        if path == "/":
            return (200, {}) if self.has_pages else (404, {})
        if path == "/healthz":
            return 200, {"multi_user": False}
        if path == "/pipelines/upload_version":
            return self._upload(query, body, headers)
        if match := re.fullmatch(r"/pipelines/([^/]+)/versions", path):
            return self._page("versions", [v for v in self.kept["versions"].values() if v["pipeline_id"] == match[1]], query)
        kind, _, rest = path.strip("/").partition("/")
        if not rest:
            return self._page(kind, list(self.kept[kind].values()), query) if method == "GET" else self._create(kind, json.loads(body))
        key, _, action = rest.partition(":")
        if key not in self.kept[kind]:
            return 404, {"code": 5, "message": f"{kind} {key} not found"}
        if method == "DELETE":
            del self.kept[kind][key]
        elif action:
            self.kept[kind][key]["mode"] = STATES[action]
        return 200, self.kept[kind].get(key, {}) if method == "GET" else {}

    def _create(self, kind: str, given: dict) -> tuple[int, dict]:
        name = given["display_name"]
        if kind in ("pipelines", "experiments") and any(each["display_name"] == name for each in self.kept[kind].values()):
            return 409, {"code": 6, "message": f"Failed to create {kind}: Already exist error: The name {name} already exist."}
        if kind == "recurringruns":
            assert len(given["trigger"]["cron_schedule"]["cron"].split()) == 6, "robfig/cron"
        return 200, self._keep(kind, COLLECTIONS[kind], given)

    def _upload(self, query: dict, body: bytes, headers) -> tuple[int, dict]:
        if query["pipelineid"] not in self.kept["pipelines"]:
            return 404, {"message": "no such pipeline"}
        same = [v for v in self.kept["versions"].values() if (v["pipeline_id"], v["name"]) == (query["pipelineid"], query["name"])]
        if same:
            return 409, {"code": 6, "message": "Already exist error: version"}
        form = BytesParser().parsebytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
        (part,) = form.get_payload()
        spec, *_ = yaml.safe_load_all(part.get_payload(decode=True))
        entry = {"name": query["name"], "display_name": query["name"], "pipeline_id": query["pipelineid"], "pipeline_spec": spec}
        return 200, self._keep("versions", "pipeline_version_id", entry | {"description": query.get("description")})

    def _keep(self, kind: str, id_name: str, entry: dict) -> dict:
        number = len(self.asked)  # grows, and so is never used twice
        entry = entry | {id_name: f"{kind}-{number}", "created_at": f"2026-01-01T00:00:{number % 60:02}Z"}
        self.kept[kind][entry[id_name]] = entry
        return entry

    def _page(self, kind: str, entries: list[dict], query: dict) -> tuple[int, dict]:
        for predicate in json.loads(query.get("filter", "{}")).get("predicates", []):
            assert predicate["operation"] in ("EQUALS", 1)
            entries = [each for each in entries if each[predicate["key"]] == predicate["stringValue"]]
        if "experiment_id" in query:
            entries = [each for each in entries if each["experiment_id"] == query["experiment_id"]]
        if query.get("sort_by") == "created_at desc":
            entries = entries[::-1]
        begin = int(query.get("page_token") or 0)
        end = begin + min(self.page, int(query.get("page_size", 20)))
        return 200, {ANSWERS.get(kind, kind): entries[begin:end], "next_page_token": str(end) if end < len(entries) else ""}
