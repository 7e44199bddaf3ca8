"""Watch the nodes of a running TrainJob: the log of the first, how nodes failed, and why nodes cannot start.

Pods are watched rather than polled: with the runtime shipped by Kubeflow Trainer, Kubernetes removes the pods with their logs within a
second of the final failure.
"""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Any

from dreamteacher.cluster.node_logs import SHOWN, Ending, Position, ending, plain
from dreamteacher.errors import UserError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

log = logging.getLogger(__name__)

Pod = dict[str, Any]  # as the API has it
CONTAINER = "node"  # of both runtimes
INDEX = "batch.kubernetes.io/job-completion-index"
NO_PROBLEM = {"", "ContainerCreating", "PodInitializing", "CrashLoopBackOff"}  # crashes are reported by their cause instead
ADVICE = {  # text in the reason or message -> what to do
    "ErrImagePull": "; check the image's name, and image_pull_secrets in resources.yaml",
    "CreateContainerConfigError": "; make it in this namespace, as docs/cluster.md says",
    "Insufficient": "; it starts as soon as a node of its pool has room",
    "persistentvolumeclaim": "; make the claim in this namespace, as docs/cluster.md says",
    "affinity/selector": "; no node has the label of its pool, see docs/cluster.md",
}
REPEATED = 1200.0  # seconds within which controllers and kubelet repeat a warning if its cause persists
NO_PODS = 60.0  # seconds without a pod before a report


class NodeWatch:
    """Watches and logs the pods of one TrainJob."""

    def __init__(self, client: ApiClient, name: str, namespace: str, nodes: int, start_min: float, *, attached: bool = False):
        """`start_min`: minutes for which nodes may fail to start; 0: no limit. `attached`: the job was created by an earlier attempt."""
        from kubernetes.client import CoreV1Api
        from kubernetes.watch import Watch

        self._core, self._watch = CoreV1Api(client), Watch()
        self._name, self._namespace, self._nodes, self._start_min = name, namespace, nodes, start_min
        self._endings: dict[str, tuple[float, Ending]] = {}  # the last ending of each node, and when it was seen
        self._final: tuple[str, Ending] | None = None
        self._handled: set[tuple[str, ...]] = set()
        self._said: set[str] = set()
        self._positions: dict[str, tuple[Position, float]] = {}  # read position in the log of each pod of node 0
        self._begun = time.monotonic()
        self._stuck: float | None = None  # time since when nodes cannot start
        self._complete = False
        self._first_lines = SHOWN if attached else 1000  # of a log that is read for the first time

    def look(self, seconds: float, since: str, *, starting: bool) -> None:
        """Watch for some seconds.

        Args:
            seconds: duration, at least one.
            since: creation time of the job in the API.
            starting: whether its pods should start; not if it waits in a queue, or has ended.

        Raises:
            UserError: a node failed with an error that would recur, or nodes could not start for too long.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        end = time.monotonic() + seconds
        pods: dict[str, Pod] = {}
        try:
            events = self._watch.stream(
                self._core.list_namespaced_pod,
                self._namespace,
                label_selector=f"jobset.sigs.k8s.io/jobset-name={self._name}",
                timeout_seconds=max(1, round(seconds)),
                _request_timeout=(10, seconds + 60),
            )
            for event in events:
                pod = event["raw_object"]
                pods[pod["metadata"]["uid"]] = pod
                self._take_endings(pod)
                if event["type"] == "DELETED":
                    del pods[pod["metadata"]["uid"]]
            newest = {_node(pod): pod for pod in sorted(pods.values(), key=lambda pod: pod["metadata"].get("creationTimestamp") or "")}
            if "0" in newest:
                self._follow(newest["0"])
            if starting:
                self._take_problems(newest, since)
            self._first_lines = 1000
        except (ApiException, HTTPError) as error:  # if the API is down, the next request (the job's state) retries
            self._say(f"the pods of TrainJob {self._name} cannot be watched: {_why(error)}")
        if self._final:
            node, how = self._final
            raise UserError(
                f"TrainJob {self._name} was deleted, since another attempt would fail in the same way: node {node}: {how.error}"
            )
        time.sleep(max(0.0, end - time.monotonic()))

    def summary(self) -> str:
        """How the nodes failed in the last hour, root causes first, in one line."""
        if not self._endings:
            return "its pods were gone before their logs could be read"
        last = max(when for when, _ in self._endings.values())
        nodes: dict[str, list[str]] = {}
        for node, (when, how) in sorted(self._endings.items(), key=lambda item: (item[1][1].consequence, item[1][0])):
            if when > last - 3600:
                nodes.setdefault(how.error[:300], []).append(node)
        groups = [f"node{'s' * (len(each) > 1)} {', '.join(sorted(each, key=_number))}: {error}" for error, each in nodes.items()]
        return "; ".join(groups[:3]) + (f"; {len(groups) - 3} more in the log above" if len(groups) > 3 else "")

    def _take_endings(self, pod: Pod) -> None:
        """Log how containers of the pod ended, each once: the one before the last restart, and one that has just ended."""
        status, uid = pod.get("status", {}), pod["metadata"]["uid"]
        disruption = _condition(pod, "DisruptionTarget")
        if disruption.get("status") == "True" and self._is_news(uid, "DisruptionTarget"):
            log.warning("node %s: its pod was evicted (%s); the next one resumes", _node(pod), _reason_and_message(disruption))
        container: dict[str, Any] = next((each for each in status.get("containerStatuses") or [] if each["name"] == CONTAINER), {})
        for state, previous in (("lastState", True), ("state", False)):
            ended = (container.get(state) or {}).get("terminated") or {}
            if ended.get("exitCode") and self._is_news(uid, str(ended.get("containerID")), str(ended.get("finishedAt"))):
                self._take_ending(pod, ended, previous)
        if status.get("phase") == "Failed" and not container and self._is_news(uid, "Failed"):  # such as evicted before it started
            self._take_ending(pod, {"reason": status.get("reason"), "message": status.get("message")}, None)

    def _take_ending(self, pod: Pod, ended: dict[str, Any], previous: bool | None) -> None:
        node, status = _node(pod), pod.get("status", {})
        text = ""
        if previous is not None:
            if node == "0":
                self._follow(pod, previous)
                self._positions[pod["metadata"]["uid"]][0].restart()
            text = plain(self._read(pod, previous, tail_lines=2000))
        how, code = ending(text), ended.get("exitCode")
        disruption = _condition(pod, "DisruptionTarget")
        disrupted = disruption.get("status") == "True"
        if disrupted:
            how = how._replace(error=f"its pod was evicted ({_reason_and_message(disruption)})", consequence=True, final=False)
        elif status.get("reason"):  # Evicted, NodeLost
            how = how._replace(error=_reason_and_message(status), consequence=False, final=False)
        elif ended.get("reason") == "OOMKilled":
            why = "it used more memory than the step's `memory` in resources.yaml (OOMKilled)"
            how = how._replace(error=why, consequence=False, final=False)
        elif not how.error and ended.get("reason") not in (None, "Error"):  # StartError
            how = how._replace(error=_reason_and_message(ended), consequence=False)
        elif pod["metadata"].get("deletionTimestamp") and (how.consequence or not how.error):
            how = how._replace(error="its pod was deleted", consequence=True)
        elif not how.error:
            known = self._endings.get(node)
            how = known[1] if known else how._replace(error=f"exit code {code}, and its log was gone", consequence=True)
        when = _seconds(ended.get("finishedAt")) or time.time()
        self._endings[node] = (when, how)
        if how.final:
            self._final = (node, how)
        if disrupted:
            return  # already logged
        shown = how.lines if node != "0" and self._is_news("lines", _without_numbers(how.error)) else []
        text = "".join(f"\n  {line}" for line in shown)
        log.error("node %s failed%s: %s%s", node, f" (exit code {code})" if code else "", how.error, text)

    def _follow(self, pod: Pod, previous: bool = False) -> None:
        """Log the new lines of node 0."""
        uid = pod["metadata"]["uid"]
        position, read = self._positions.get(uid, (Position(), None))
        now = time.monotonic()
        part = {"tail_lines": self._first_lines} if read is None else {"since_seconds": int(now - read) + 60}
        text = self._read(pod, previous, **part)
        for line in position.new(text):
            log.info("node 0: %s", line)
        if text or read is None:
            self._positions[uid] = (position, now)

    def _read(self, pod: Pod, previous: bool, **part: Any) -> str:
        """A part of the log with timestamps; empty if there is none (yet, or any more)."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        if not any(each.get("containerID") for each in pod.get("status", {}).get("containerStatuses") or []):
            return ""
        read = self._core.read_namespaced_pod_log
        try:
            answer = read(
                pod["metadata"]["name"],
                self._namespace,
                container=CONTAINER,
                previous=previous,
                timestamps=True,
                _preload_content=False,
                _request_timeout=60,
                **part,
            )
        except (ApiException, HTTPError) as error:
            if getattr(error, "status", None) not in (400, 404):  # 400: the container has not started, or its log is gone
                self._say(f"the log of node {_node(pod)} cannot be read: {_why(error)}")
            return ""
        return str(answer.data.decode("utf-8", "replace"))

    def _take_problems(self, newest: dict[str, Pod], since: str) -> None:
        """Log what keeps nodes from starting; `newest` has the last pod of each node.

        Raises:
            UserError: it lasted too long. Waiting for nodes in use by others does not count, unless some of our nodes are held idle.
        """
        problems = [(node, *problem) for node, pod in sorted(newest.items()) for problem in self._problems(pod, since)]
        if len(newest) < self._nodes:
            for made in (self._name, f"{self._name}-{CONTAINER}-0"):  # the TrainJob and its JobSet; the Job
                problems += [("", *problem) for problem in self._events(made, since, r"FailedCreate$|(Creation|Reconcile)Failed$")]
        if not newest and not problems and time.monotonic() - self._begun > NO_PODS:
            problems = [("", "no pods are created", "check that the controllers of Kubeflow Trainer and JobSet run")]
        for node, reason, message in problems:
            who = f"node {node}" if node else "a node"
            self._say(f"TrainJob {self._name}: {who} cannot start: {reason}: {message}{_advice(reason, message)}", f"{reason} {message}")
        running = sum((pod.get("status", {}).get("phase") or "Pending") != "Pending" for pod in newest.values())
        if running == self._nodes and not problems and not self._complete:
            log.info("TrainJob %s: all %d nodes have started", self._name, self._nodes)
        self._complete = running == self._nodes and not problems
        alive = [pod for pod in newest.values() if pod.get("status", {}).get("phase") not in ("Failed", "Succeeded")]
        held = any(_condition(pod, "PodScheduled").get("status") == "True" for pod in alive)
        counted = [each for each in problems if held or each[1] != "Unschedulable" or "Insufficient" not in each[2]]
        if not counted:
            self._stuck = None
            return
        self._stuck = self._stuck or time.monotonic()
        if self._start_min and time.monotonic() - self._stuck >= self._start_min * 60:
            node, reason, message = counted[0]
            who = f"node {node}" if node else "a node"
            raise UserError(
                f"TrainJob {self._name} was deleted: for {self._start_min:g} minutes (`start_min` in resources.yaml) {who} could not "
                f"start: {reason}: {message[:300]}{_advice(reason, message)}"
            )

    def _problems(self, pod: Pod, since: str) -> list[tuple[str, str]]:
        """(reason, message) of what keeps the pod from starting."""
        status = pod.get("status", {})
        scheduled = _condition(pod, "PodScheduled")
        if scheduled.get("status") == "False":
            return [(scheduled.get("reason") or "Unschedulable", _line(scheduled.get("message")))]
        containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        waiting = [(each.get("state") or {}).get("waiting") or {} for each in containers]
        found = [
            (
                each["reason"].replace("ImagePullBackOff", "ErrImagePull"),
                re.sub("^Back-off .*?ErrImagePull: ", "", _line(each.get("message"))),
            )
            for each in waiting
            if each.get("reason", "") not in NO_PROBLEM
        ]
        if not found and status.get("phase") == "Pending":  # a volume that cannot be mounted is reported only as an event
            found = self._events(pod["metadata"]["name"], since, "^Failed(?!Scheduling)")
        return found

    def _events(self, name: str, since: str, reasons: str) -> list[tuple[str, str]]:
        """(reason, message) of the last warning about the object of that name, if it is recent."""
        selector = f"involvedObject.name={name},type=Warning"
        found, oldest = [], max(_seconds(since), time.time() - REPEATED)
        for event in self._core.list_namespaced_event(self._namespace, field_selector=selector, _request_timeout=60).items:
            when = event.last_timestamp or event.event_time or event.first_timestamp
            if re.search(reasons, event.reason or "") and (when is None or when.timestamp() >= oldest):
                found.append((when.timestamp() if when else 0.0, event.reason, _line(event.message)))
        return [max(found)[1:]] if found else []

    def _is_news(self, *what: str) -> bool:
        news = what not in self._handled
        self._handled.add(what)
        return news

    def _say(self, message: str, key: str = "") -> None:
        """Warn once, ignoring numbers and pod names."""
        key = _without_numbers(re.sub(rf"{re.escape(self._name)}[\w.-]*", "", key or message))
        if key not in self._said:
            self._said.add(key)
            log.warning("%s", message)


def _node(pod: Pod) -> str:
    found = {**(pod["metadata"].get("annotations") or {}), **(pod["metadata"].get("labels") or {})}
    return str(found.get(INDEX, pod["metadata"]["name"]))


def _number(node: str) -> int:
    return int(node) if node.isdecimal() else 0


def _advice(reason: str, message: str) -> str:
    return next((words for key, words in ADVICE.items() if key in reason or key in message), "")


def _condition(pod: Pod, kind: str) -> dict[str, str]:
    return next((each for each in pod.get("status", {}).get("conditions") or [] if each["type"] == kind), {})


def _reason_and_message(status: dict[str, Any]) -> str:
    return ": ".join(_line(status[key]) for key in ("reason", "message") if status.get(key))


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _without_numbers(text: str) -> str:
    return re.sub(r"\w*\d\w*", "", text)


def _seconds(stamp: str | None) -> float:
    from datetime import datetime

    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


def _why(error: Exception) -> str:
    status = getattr(error, "status", None)
    if status is None:
        return f"the Kubernetes API cannot be reached ({type(error).__name__})"
    return f"{status} {getattr(error, 'reason', '')}" + ("; the step's service account needs the role of k8s/base" if status == 403 else "")
