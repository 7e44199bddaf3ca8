"""A small Kubernetes API, in memory: TrainJobs as Kubeflow Trainer 2.3 and JobSet 0.12 treat them, and their pods with logs and events.

As seen on a cluster: by the shipped runtime a pod's container is restarted in place (OnFailure), restarts of all live pods are summed, and
with the sixth the Job deletes its pods, about a second later, before the TrainJob is `Failed`, reason `FailedJobs`. By our own (Never) a
failed pod stays and another takes its index; a disruption is not counted.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import jsonschema
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from helpers import PROJECT
from json_server import Handler, JsonServer, Request

TRAINER = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml"
JOBS = f"{TRAINER}/trainjobs"
RUNTIMES = f"{TRAINER}/trainingruntimes"
PODS = "/api/v1/namespaces/ml/pods"
EVENTS = "/api/v1/namespaces/ml/events"
OWN_RUNTIME = yaml.safe_load((PROJECT / "k8s/multi-node/runtime.yaml").read_text())
BACKOFF_LIMIT = 6  # of a Job that names none
RESTRICTED = "violates PodSecurity"


@cache
def validator(model: Any = TrainerV1alpha1TrainJob) -> jsonschema.Draft202012Validator:
    """A kind's schema of Kubeflow Trainer 2.3 as its own package has it, closed: a field that it does not name is an error."""
    found: dict[str, Any] = model.model_json_schema(by_alias=True)
    for name, kind in [("", found), *found["$defs"].items()]:
        if name.endswith("Quantity"):  # a wrapper of Python's client; on the wire it is a number or text
            found["$defs"][name] = {"type": ["integer", "string"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGTPE]i?)?$"}
        elif "properties" in kind:
            kind["additionalProperties"] = False
    return jsonschema.Draft202012Validator(found)


class Pod:
    """One pod of a TrainJob. Its log is kept for each run of its container."""

    count = 0

    def __init__(self, job: str, index: int):
        Pod.count += 1
        self.job, self.index, self.uid = job, index, f"uid-{Pod.count}"
        self.name = f"{job}-node-0-{index}-{Pod.count:05x}"
        self.created = datetime.now(UTC)
        self.logs: list[list[tuple[datetime, str]]] = [[]]
        self.conditions: list[dict[str, str]] = [{"type": "PodScheduled", "status": "True"}]
        self.phase = "Running"
        self.reason: dict[str, str] = {}
        self.state: dict[str, Any] = {"running": {}}
        self.last: dict[str, Any] = {}
        self.restarts = 0
        self.unreadable = False  # as when its node has removed the log already
        self.unread = False  # whether a container has failed and nobody has asked for its log

    def write(self, *lines: str) -> None:
        self.logs[-1] += [(datetime.now(UTC), line) for line in lines]

    def waits(self, reason: str, message: str = "") -> None:
        """Its container cannot start."""
        self.phase, self.state = "Pending", {"waiting": {"reason": reason, "message": message}}

    def unschedulable(self, message: str) -> None:
        self.phase, self.state = "Pending", {}
        self.conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]

    def runs(self) -> None:
        self.phase, self.state = "Running", {"running": {}}
        self.conditions = [{"type": "PodScheduled", "status": "True"}]

    def ends(self, code: int, reason: str) -> dict[str, Any]:
        self.unread, now = True, datetime.now(UTC)
        ended = {"exitCode": code, "reason": reason, "finishedAt": _stamp(now), "containerID": f"containerd://{self.uid}-{self.restarts}"}
        return {"terminated": ended}

    def as_json(self) -> dict[str, Any]:
        container = {"name": "node", "restartCount": self.restarts, "state": self.state, "lastState": self.last, "image": "", "imageID": ""}
        if "waiting" not in self.state or self.restarts:
            container["containerID"] = f"containerd://{self.uid}-{self.restarts}"
        status = {"phase": self.phase, "conditions": self.conditions, **self.reason}
        if self.state:
            status["containerStatuses"] = [container | {"ready": "running" in self.state}]
        index = {"batch.kubernetes.io/job-completion-index": str(self.index)}
        metadata = {"name": self.name, "uid": self.uid, "creationTimestamp": _stamp(self.created), "annotations": index}
        return {"kind": "Pod", "metadata": metadata, "spec": {"containers": [{"name": "node"}]}, "status": status}

    def log(self, query: dict[str, list[str]]) -> tuple[int, str]:
        which = -1
        if query.get("previous") == ["True"]:
            which = len(self.logs) - 2 if "running" in self.state else len(self.logs) - 1
        elif "waiting" in self.state and not self.restarts:
            return 400, json.dumps({"kind": "Status", "code": 400, "message": "container is waiting to start"})
        lines = self.logs[which]
        if query.get("tailLines") == ["2000"]:
            self.unread = False
            if self.unreadable:
                return 200, "unable to retrieve container logs for containerd://1"
        if "sinceSeconds" in query:
            since = datetime.now(UTC) - timedelta(seconds=int(query["sinceSeconds"][0]))
            lines = [each for each in lines if each[0] >= since]
        lines = lines[-int(query.get("tailLines", ["1000000"])[0]) :]
        stamped = query.get("timestamps") == ["True"]
        return 200, "".join(f"{when.strftime('%Y-%m-%dT%H:%M:%S.%f')}000Z {line}\n" if stamped else f"{line}\n" for when, line in lines)


class KubernetesApi:
    """`fail` maps "METHOD" to a list of statuses for the next requests; `while_watched` happens, one by one, while pods are watched."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: list[Pod] = []
        self.events: list[dict[str, Any]] = []
        self.runtimes: dict[str, dict[str, Any]] = {}  # TrainingRuntimes of the namespace
        self.asked: list[str] = []
        self.fail: dict[str, list[int]] = {}
        self.forbidden: set[str] = set()  # "VERB resource" that the role does not allow
        self.restricted = False  # whether the namespace enforces Pod Security `restricted`
        self.makes_pods = True
        self.on_get: Callable[[dict[str, Any]], None] = lambda job: None  # what the cluster does between two questions
        self.while_watched: list[Callable[[], object]] = []
        self.finalizing: dict[str, int] = {}  # job -> questions for which it is still being deleted
        self._counted: dict[tuple[str, int], int] = {}  # failures of each index
        api = self

        class Watched(Handler):
            def respond(self, request: Request) -> None:
                if request.query.get("watch") != ["True"]:
                    return super().respond(request)
                refused = "watch pods" in api.forbidden
                self.send_response(403 if refused else 200)
                self.send_header("Transfer-Encoding", "chunked")  # so that a client has each line when it is sent
                self.end_headers()
                for line in [] if refused else api.watch(request.query):
                    data = json.dumps(line).encode() + b"\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.write(b"0\r\n\r\n")

        self._server = JsonServer(self._serve, Watched)
        self.url = self._server.url

    def __enter__(self) -> "KubernetesApi":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _serve(self, asked: Request) -> tuple[int, Any]:
        self.asked.append(f"{asked.method} {asked.path}")
        return self.answer(asked.method, asked.path, asked.query, asked.body)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        if self.fail.get(method):
            status = self.fail[method].pop(0)
            return status, {"kind": "Status", "code": status, "message": f"refused\n({status})"}
        if path.startswith(RUNTIMES):
            name = path.removeprefix(RUNTIMES).strip("/")
            if "get trainingruntimes" in self.forbidden:
                return 403, {"kind": "Status", "code": 403, "message": 'User "x" cannot get resource "trainingruntimes"'}
            return (200, self.runtimes[name]) if name in self.runtimes else (404, {"kind": "Status", "code": 404, "message": "not found"})
        if path.startswith(PODS):
            pods = [pod for pod in self.pods if pod.name == path.removeprefix(PODS).split("/")[1]]
            return pods[0].log(query) if pods else (404, {"kind": "Status", "code": 404, "message": "pods not found"})
        if path == EVENTS:
            wanted = dict(each.split("=") for each in query["fieldSelector"][0].split(","))
            about = wanted["involvedObject.name"]
            found = [each for each in self.events if each["type"] == wanted["type"] and each["involvedObject"]["name"] == about]
            return 200, {"kind": "EventList", "items": found}
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
            self.pods = [pod for pod in self.pods if pod.job != name]
        elif name in self.finalizing:
            self.finalizing[name] -= 1
            if self.finalizing[name] == 0:
                del self.jobs[name], self.finalizing[name]
        else:
            self.on_get(job)
        return 200, job

    def watch(self, query: dict[str, list[str]]) -> Any:
        """Each pod as it is, then each again that `while_watched` changes, as the controllers' own watches have them too."""
        job = query["labelSelector"][0].removeprefix("jobset.sigs.k8s.io/jobset-name=")
        seen = {pod.uid: pod.as_json() for pod in self.pods if pod.job == job}
        yield from ({"type": "ADDED", "object": each} for each in seen.values())
        while self.while_watched:
            patience = time.monotonic() + 1
            while time.monotonic() < patience and any(pod.unread for pod in self.pods):
                time.sleep(0.01)
            self.while_watched.pop(0)()
            now = {pod.uid: pod.as_json() for pod in self.pods if pod.job == job}
            yield from ({"type": "MODIFIED", "object": each} for uid, each in now.items() if each != seen.get(uid))
            yield from ({"type": "DELETED", "object": each} for uid, each in seen.items() if uid not in now)
            seen = now
        time.sleep(0.005)

    def node(self, index: int) -> Pod:
        """The last pod of that node."""
        return [pod for pod in self.pods if pod.index == index][-1]

    def fail_node(self, index: int, *log: str, code: int = 1, reason: str = "Error") -> None:
        """Its container ends; Job, JobSet and TrainJob do what follows from that."""
        pod = self.node(index)
        pod.write(*log)
        job = self.jobs[pod.job]
        if job["spec"]["runtimeRef"]["kind"] == "TrainingRuntime":
            pod.state, pod.phase = pod.ends(code, reason), "Failed"
            self._replace(pod, counted=True)
            return
        pod.last, pod.state = pod.ends(code, reason), {"running": {}}
        pod.restarts += 1
        pod.logs.append([])
        if sum(each.restarts for each in self.pods if each.job == pod.job) >= BACKOFF_LIMIT:
            self.while_watched.insert(0, lambda: self._fail(job, [each for each in self.pods if each.job == pod.job]))

    def disrupt_node(self, index: int) -> None:
        """Its pod is preempted."""
        pod = self.node(index)
        why = {"reason": "PreemptionByScheduler", "message": "for a higher priority"}
        pod.conditions.append({"type": "DisruptionTarget", "status": "True", **why})
        if self.jobs[pod.job]["spec"]["runtimeRef"]["kind"] == "TrainingRuntime":
            pod.state, pod.phase = pod.ends(1, "Error"), "Failed"
            self._replace(pod, counted=False)
        else:
            self.pods.remove(pod)
            self.pods.append(Pod(pod.job, index))

    def _replace(self, pod: Pod, counted: bool) -> None:
        job = self.jobs[pod.job]
        (template,) = self.runtimes[job["spec"]["runtimeRef"]["name"]]["spec"]["template"]["spec"]["replicatedJobs"]
        spec = template["template"]["spec"]
        assert [each["action"] for each in spec["podFailurePolicy"]["rules"]] == ["Ignore"]
        key = (pod.job, pod.index)
        self._counted[key] = self._counted.get(key, 0) + counted
        if self._counted[key] > spec["backoffLimitPerIndex"]:
            self._fail(job, [each for each in self.pods if each.job == pod.job and each.phase != "Failed"])
        else:
            self.pods.append(Pod(pod.job, pod.index))

    def _fail(self, job: dict[str, Any], deleted: list[Pod]) -> None:
        self.pods = [pod for pod in self.pods if pod not in deleted]
        finish("Failed", f"jobset failed due to one or more job failures (first failed job: {job['metadata']['name']}-node-0)")(job)

    def warn(self, about: str, reason: str, message: str, age: float = 0) -> None:
        """An event of type Warning about an object of that name."""
        when = _stamp(datetime.now(UTC) - timedelta(seconds=age))
        about_it = {"involvedObject": {"name": about}, "metadata": {"name": "e", "namespace": "ml"}}
        self.events.append({"type": "Warning", "reason": reason, "message": message, "lastTimestamp": when, **about_it})

    def _create(self, job: dict[str, Any]) -> tuple[int, Any]:
        if wrong := next(validator().iter_errors(job), None):
            return 422, {"kind": "Status", "code": 422, "message": wrong.message}
        name, spec = job["metadata"]["name"], job["spec"]
        if spec["runtimeRef"]["kind"] == "TrainingRuntime" and spec["runtimeRef"]["name"] not in self.runtimes:
            why = "specified trainingRuntime must be created before the TrainJob is created"
            return 403, {"kind": "Status", "code": 403, "message": f'admission webhook "validator.trainjob..." denied the request: {why}'}
        if name in self.jobs:
            return 409, {"kind": "Status", "code": 409, "reason": "AlreadyExists", "message": f"{name} already exists"}
        job["metadata"]["creationTimestamp"] = _stamp(datetime.now(UTC))
        self.jobs[name] = job
        self.make_pods(job)
        return 201, job

    def make_pods(self, job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        if self.restricted and (wrong := _violations(job)):
            why = f'Error creating: pods "{name}-node-0-0-x7k2p" is forbidden: {RESTRICTED} "restricted": {wrong}'
            self.warn(f"{name}-node-0", "FailedCreate", why)
        elif self.makes_pods:
            self.pods += [Pod(name, index) for index in range(job["spec"]["trainer"]["numNodes"])]


def finish(kind: str = "Complete", message: str = "", reason: str = "") -> Callable[[dict[str, Any]], None]:
    """The job has ended in this way when it is next asked about."""
    reason = reason or {"Complete": "AllJobsCompleted", "Failed": "FailedJobs"}[kind]

    def end(job: dict[str, Any]) -> None:
        job["status"] = {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]}

    return end


def _violations(job: dict[str, Any]) -> str:
    """What Pod Security `restricted` has against the job's pods, of which the runtimes say nothing themselves."""
    (patch,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = patch["template"]["spec"]["template"]["spec"]
    whole, container = pod.get("securityContext", {}), pod["containers"][0].get("securityContext", {})
    wrong = {
        "allowPrivilegeEscalation != false": container.get("allowPrivilegeEscalation") is not False,
        "unrestricted capabilities": container.get("capabilities", {}).get("drop") != ["ALL"],
        "runAsNonRoot != true": not whole.get("runAsNonRoot"),
        "seccompProfile": whole.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"),
    }
    return ", ".join(name for name, is_so in wrong.items() if is_so)


def _stamp(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
