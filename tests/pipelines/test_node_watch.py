"""The nodes of a TrainJob as the step's log tells of them: progress, failures, what keeps them from starting."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration
from kubernetes_api import OWN_RUNTIME, RESTRICTED, KubernetesApi, finish

from dreamteacher.cluster import node_watch
from dreamteacher.cluster.trainjob import Nodes, manifest, run
from dreamteacher.errors import UserError

TORCHRUN = """E1127 00:23:20.246000 7326 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: {code}) local_rank: 0
Traceback (most recent call last):
  File "/usr/bin/torchrun", line 8, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Root Cause (first observed failure):
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : {code} (pid: 7741)"""
TRACEBACK = """[rank0]: Traceback (most recent call last):
[rank0]:   File "loop.py", line 9, in step
[rank0]: {error}"""


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with KubernetesApi() as started:
        yield started


@pytest.fixture(params=["shipped runtime", "own runtime"])
def either(api: KubernetesApi, request: pytest.FixtureRequest) -> KubernetesApi:
    if request.param == "own runtime":
        api.runtimes["dreamteacher-torch"] = OWN_RUNTIME
    return api


def follow(api: KubernetesApi, *happens: Callable[[], object], nodes: int = 2, **more: Any) -> None:
    """Run a TrainJob. Each of what happens does so between two looks at it; after the last the job is complete, unless it has failed."""
    job = manifest(Nodes(image="i", nodes=nodes), "job-1", "run-1", "ml", [], own_runtime=bool(api.runtimes))
    settings = Configuration()
    settings.host, settings.retries = api.url, False
    todo = iter(happens)

    def on_get(job: dict[str, Any]) -> None:
        if "status" not in job:
            next(todo, lambda: finish()(job))()

    api.on_get = on_get
    run(ApiClient(settings), job, poll=0.02, **more)


def crash(error: str, code: int = 1) -> list[str]:
    lines = f"step 100 loss 0.5\n{TRACEBACK.format(error=error)}" if code == 1 else f"error: {error}"
    return [*lines.splitlines(), *TORCHRUN.format(code=code).splitlines()]


PEER = "torch.distributed.DistBackendError: NCCL error: remote process exited"


def test_first_failure_is_shown_when_it_happens_and_not_when_the_job_ends(either: KubernetesApi, caplog: pytest.LogCaptureFixture):
    follow(either, lambda: either.fail_node(1, *crash("ValueError: bad batch")))
    assert "node 1 failed (exit code 1): ValueError: bad batch\n  step 100 loss 0.5\n" in caplog.text
    assert "torchrun" not in caplog.text


def test_error_of_each_node_is_in_the_last_message_with_the_cause_first(either: KubernetesApi):
    def fails() -> None:
        for node in (0, 2, 3):
            either.fail_node(node, *crash(PEER))
        either.fail_node(1, *crash("torch.OutOfMemoryError: CUDA out of memory"))

    with pytest.raises(UserError) as caught:
        follow(either, *[fails] * 8, nodes=4)
    said = str(caught.value)
    assert said.startswith("TrainJob job-1 failed (FailedJobs jobset failed due to one or more job failures")
    assert said.endswith(f"; node 1: torch.OutOfMemoryError: CUDA out of memory; nodes 0, 2, 3: {PEER}")
    assert "\n" not in said
    assert either.jobs == {}


def test_errors_are_read_before_the_job_fails_and_its_pods_are_removed(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    """Eight nodes that fail at once exceed the shipped runtime's limit of restarts, which ends the job and removes its pods."""

    def all_fail() -> None:
        for node in range(8):
            api.fail_node(node, *crash("ValueError: all alike"))

    with pytest.raises(UserError, match=r"FailedJobs.*nodes 0, 1, 2, 3, 4, 5, 6, 7: ValueError: all alike"):
        follow(api, lambda: api.while_watched.append(all_fail), nodes=8)
    assert caplog.text.count("step 100 loss 0.5") == 1  # seven times the same says nothing


def test_what_the_stage_itself_refuses_is_not_retried(either: KubernetesApi):
    with pytest.raises(
        UserError, match="TrainJob job-1 was deleted, since another attempt would fail in the same way: node 0: data: /x does not exist"
    ):
        follow(either, lambda: either.fail_node(0, *crash("data: /x does not exist", code=2)))
    assert either.jobs == {}


def test_preempted_nodes_do_not_use_up_the_own_runtimes_failures(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    """Each preemption of one of four fails the other three as well: the shipped runtime's Job is at its limit with the third."""

    def preempted(node: int) -> None:
        api.disrupt_node(node)
        for other in {0, 1, 2, 3} - {node}:
            api.fail_node(other, *crash(PEER))

    api.runtimes["dreamteacher-torch"] = OWN_RUNTIME
    follow(api, *[lambda node=node: preempted(node) for node in (0, 1, 2, 3, 0, 1, 2)], nodes=4)
    assert "node 2: its pod was evicted (PreemptionByScheduler: for a higher priority); the next one resumes" in caplog.text
    api.runtimes = {}
    with pytest.raises(UserError, match="FailedJobs"):
        follow(api, *[lambda node=node: preempted(node) for node in (0, 1, 2, 3)], nodes=4)


@pytest.mark.parametrize(
    ("reason", "code", "said"),
    [("OOMKilled", 137, "more memory than the step's `memory`"), ("StartError", 128, "StartError"), ("Error", 139, "step 7")],
)
def test_failure_without_a_traceback_is_explained_by_kubernetes(api: KubernetesApi, reason: str, code: int, said: str):
    with pytest.raises(UserError, match=said):
        follow(api, *[lambda: api.fail_node(0, *(["step 7"] if code != 128 else []), code=code, reason=reason)] * 8)


def test_lost_log_does_not_hide_what_the_nodes_log_said_before(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    def fails() -> None:
        api.fail_node(0, *crash("ValueError: bad batch"))

    def fails_unread() -> None:
        api.node(1).unreadable = True
        api.fail_node(1)
        api.node(0).unreadable = True
        api.fail_node(0)

    with pytest.raises(UserError, match="; node 0: ValueError: bad batch; node 1: exit code 1, and its log was gone"):
        follow(api, fails, *[fails_unread] * 3)
    assert "unable to retrieve" not in caplog.text


def test_reason_of_an_evicted_pod_is_reported(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    def evicted() -> None:
        pod = api.node(1)
        pod.phase, pod.state = "Failed", {}
        pod.reason = {"reason": "Evicted", "message": "The node was low on resource:\nephemeral-storage."}

    follow(api, evicted)
    assert "node 1 failed: Evicted: The node was low on resource: ephemeral-storage." in caplog.text


def test_log_of_node_0_is_followed_line_by_line_and_none_comes_twice(either: KubernetesApi, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    lines = [f"step {i} loss {1 / (i + 1):.3f}" for i in range(40)]

    def write(first: int) -> Callable[[], None]:
        def happens() -> None:
            either.node(0).write(*lines[first : first + 10])
            either.node(1).write("of no interest")

        return happens

    def write_and_fail() -> None:
        write(10)()
        either.fail_node(0, *crash("ValueError: lost"))

    follow(either, write(0), write_and_fail, write(20), write(30))
    told = [record.getMessage().removeprefix("node 0: ") for record in caplog.records if record.getMessage().startswith("node 0: step")]
    assert [line for line in told if line in lines] == lines
    assert "node 0: [rank0]: ValueError: lost" in caplog.text
    assert "torchrun" not in caplog.text
    assert "of no interest" not in caplog.text


def test_retried_step_shows_the_end_of_the_log_and_what_follows(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    job = manifest(Nodes(image="i"), "job-1", "run-1", "ml", [])
    api.jobs["job-1"] = json.loads(json.dumps(job))
    api.make_pods(job)
    api.node(0).write(*[f"step {i}" for i in range(100)])
    looks = iter([lambda job: None, lambda job: None, lambda job: api.node(0).write(*[f"step {i}" for i in range(100, 200)]), finish()])

    def next_look(job: dict[str, Any]) -> None:
        next(looks)(job)

    api.on_get = next_look
    settings = Configuration()
    settings.host = api.url
    run(ApiClient(settings), job, poll=0.02)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("node 0: step")]
    assert told == [f"node 0: step {i}" for i in range(70, 200)]


def test_no_log_line_is_lost_while_the_api_does_not_answer(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)

    def away() -> None:
        api.node(0).write("step 1")
        api.fail["GET"] = [503, 500]

    follow(api, away, lambda: api.node(0).write("step 2"))
    assert [record.getMessage() for record in caplog.records if "step" in record.getMessage()] == ["node 0: step 1", "node 0: step 2"]


CANNOT_START: dict[str, tuple[Callable[[KubernetesApi], object], str]] = {
    "image": (
        lambda api: api.node(1).waits("ImagePullBackOff", 'Back-off pulling image "i": ErrImagePull: failed to pull "i": not found'),
        'node 1 cannot start: ErrImagePull: failed to pull "i": not found; check the image',
    ),
    "config map": (
        lambda api: api.node(1).waits("CreateContainerConfigError", 'configmap "dreamteacher-env" not found'),
        'node 1 cannot start: CreateContainerConfigError: configmap "dreamteacher-env" not found; make it in this namespace',
    ),
    "label": (
        lambda api: api.node(0).unschedulable("0/5 nodes are available: 5 node(s) didn't match Pod's node affinity/selector."),
        "node 0 cannot start: Unschedulable: 0/5 nodes are available: 5 node(s) didn't match "
        "Pod's node affinity/selector.; no node has the label of its pool",
    ),
    "volume": (
        lambda api: (
            api.node(0).waits("ContainerCreating"),
            api.warn(api.node(0).name, "FailedMount", 'MountVolume.SetUp failed for volume "runs"'),
        ),
        'node 0 cannot start: FailedMount: MountVolume.SetUp failed for volume "runs"',
    ),
    "quota": (
        lambda api: (
            api.pods.clear(),
            api.warn("job-1-node-0", "FailedCreate", 'pods "job-1-node-0-0-x7k2p" is forbidden: exceeded quota: gpus'),
        ),
        "a node cannot start: FailedCreate: pods",
    ),
    "controller": (
        lambda api: (api.pods.clear(), api.warn("job-1", "TrainJobResourcesCreationFailed", "TrainJob resources reconciliation failed")),
        "a node cannot start: TrainJobResourcesCreationFailed: TrainJob resources",
    ),
}


@pytest.mark.parametrize("kind", CANNOT_START)
def test_what_keeps_pods_from_starting_is_reported_once_and_given_up_in_the_end(
    api: KubernetesApi, caplog: pytest.LogCaptureFixture, kind: str
):
    happens, said = CANNOT_START[kind]
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"TrainJob job-1 was deleted: for 0.005 minutes .* could not start: ") as caught:
        follow(api, lambda: happens(api), *[lambda: None] * 200, start_min=0.005)
    assert caplog.text.count(said) == 1
    assert said.split("cannot start: ")[1][:30] in str(caught.value)
    assert time.monotonic() - begun > 0.3
    assert api.jobs == {}


def test_waiting_for_nodes_that_others_use_is_reported_and_not_given_up(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    busy = "0/9 nodes are available: 9 Insufficient nvidia.com/gpu."

    def all_wait() -> None:
        for node in (0, 1):
            api.node(node).unschedulable(busy)

    def more_of_them() -> None:  # the same, with another number
        for node in (0, 1):
            api.node(node).unschedulable(busy.replace("9", "8"))

    follow(api, all_wait, *[more_of_them] * 15, lambda: [api.node(0).runs(), api.node(1).runs()], lambda: None, start_min=0.005)
    assert caplog.text.count("cannot start: Unschedulable") == 1
    assert "it starts as soon as a node of its pool has room" in caplog.text
    assert "TrainJob job-1: all 2 nodes have started" in caplog.text
    with pytest.raises(UserError, match="Insufficient"):  # while others are held idle for it
        follow(api, lambda: api.node(1).unschedulable(busy), *[lambda: None] * 200, start_min=0.005)


def test_old_warnings_are_not_reported(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    """For example, a volume was mounted at the second attempt, and a large image is still being pulled."""

    def slow() -> None:
        api.jobs["job-1"]["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        api.node(0).waits("ContainerCreating")
        api.warn(api.node(0).name, "FailedMount", "timed out waiting for the cache", age=1500)

    follow(api, slow, *[lambda: None] * 10, start_min=0.001)
    assert "cannot start" not in caplog.text


def test_a_queued_job_is_not_reported_as_unable_to_start(
    api: KubernetesApi, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Kueue suspends the job until there is room, so it has no pods."""
    monkeypatch.setattr(node_watch, "NO_PODS", 0.0)
    api.makes_pods = False
    suspended = {"conditions": [{"type": "Suspended", "status": "True", "reason": "Suspended", "message": ""}]}
    job = manifest(Nodes(image="i"), "job-1", "run-1", "ml", [])
    api.jobs["job-1"] = json.loads(json.dumps(job))
    looks = iter([lambda job: job.update(status=suspended)] * 10 + [finish()])
    settings = Configuration()
    settings.host = api.url

    def next_look(job: dict[str, Any]) -> None:
        next(looks)(job)

    api.on_get = next_look
    run(ApiClient(settings), job, poll=0.02, start_min=0.001)
    assert "cannot start" not in caplog.text
    api.jobs["job-1"] = json.loads(json.dumps(job))
    looks = iter([lambda job: None] * 3 + [finish()])
    run(ApiClient(settings), job, poll=0.02)
    assert "no pods are created: check that the controllers of Kubeflow Trainer and JobSet run" in caplog.text


def test_a_namespace_that_is_restricted_takes_the_pods(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    api.restricted = True
    follow(api, lambda: None)
    assert RESTRICTED not in caplog.text
    job = manifest(Nodes(image="i"), "job-1", "run-1", "ml", [])
    (patch,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    del patch["template"]["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"]
    settings = Configuration()
    settings.host = api.url
    with pytest.raises(UserError, match=f"was deleted.*{RESTRICTED}.*runAsNonRoot"):
        api.on_get = lambda job: None
        run(ApiClient(settings), job, poll=0.02, start_min=0.001)


def test_role_that_may_not_watch_pods_is_reported_once_and_stops_nothing(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    api.forbidden.add("watch pods")
    follow(api, lambda: None, lambda: None)
    assert caplog.text.count("cannot be watched: 403 Forbidden; the step's service account needs the role of k8s/base") == 1
