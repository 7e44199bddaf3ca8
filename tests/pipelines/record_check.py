"""Provokes each finding of `check` once on a real, throw-away cluster, and records what its API answers: test_check.py replays it.

    KUBECONFIG=... python tests/pipelines/record_check.py [SCENARIO ...]

The cluster has one node, called node1, and these images:
    registry.example/dreamteacher-python:git-1a2b3c4   with Python, botocore and packages named dreamteacher and kfp; user 65532:0
    registry.example/dreamteacher-python:git-4444444   the same as root
    ghcr.io/kubeflow/kfp-api-server:2.17.0, quay.io/argoproj/workflow-controller:v4.0.8   any process that waits
MLflow (which allows the host mlflow.mlflow.svc) and moto's S3 (which checks S3_KEY and S3_SECRET) listen on the node's ports 15000 and
19000. Objects without anything behind them are the nodes gpu1 and gpu2, and the kinds of Kubeflow Trainer.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import yaml
from check_scenarios import SCENARIOS, Scenario
from kubernetes.client import rest

ANSWERS = Path(__file__).with_name("check_answers.json")
ROOT = Path(__file__).parents[2]
HOST = os.environ.get("NODE_ADDRESS", "10.88.0.1")
KEYS = (os.environ.get("S3_KEY", "key"), os.environ.get("S3_SECRET", "secret"))
# Noise, and what differs each time.
DROPPED = {"managedFields", "resourceVersion", "creationTimestamp", "generation", "images", "nodeInfo", "lastHeartbeatTime"}
DROPPED |= {"lastTransitionTime", "lastUpdateTime", "selfLink", "observedGeneration", "firstTimestamp", "lastTimestamp", "eventTime"}
DROPPED |= {
    "command",
    "terminationMessagePath",
    "podIPs",
    "hostIPs",
    "podIP",
    "hostIP",
    "startTime",
    "startedAt",
    "finishedAt",
    "containerID",
}
DROPPED |= {"volumes", "volumeMounts", "env", "tolerations", "annotations", "securityContext", "serverAddressByClientCIDRs"}


def shell(command: str) -> None:
    subprocess.run(["bash", "-ec", command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def service(name: str, namespace: str, port: int, to: int) -> list[dict[str, Any]]:
    ports = [{"name": "http", "port": port, "targetPort": to}]
    endpoints = {"addresses": [{"ip": HOST}], "ports": [{"name": "http", "port": to}]}
    meta = {"name": name, "namespace": namespace}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports}},
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": [endpoints]},
    ]


def deployment(name: str, image: str) -> dict[str, Any]:
    labels, container = {"app": name}, {"name": "main", "image": image}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container], "nodeName": "node1"}}
    meta = {"name": name, "namespace": "kubeflow"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


def definition(group: str, version: str, kind: str, scope: str = "Namespaced", fields: tuple[str, ...] = ()) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    spec = {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {field: {"type": "array", "items": {
        "type": "object", "x-kubernetes-preserve-unknown-fields": True}} for field in fields}}  # fmt: skip
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "annotations": {"api-approved.kubernetes.io": "unapproved, for a trial"}},
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"plural": plural, "kind": kind},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def healthy() -> None:
    """All that `check` looks for."""
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    trainer = "trainer.kubeflow.org"
    volume = {"capacity": {"storage": "200Gi"}, "accessModes": ["ReadWriteMany"], "hostPath": {"path": "/tmp/check-runs"}}
    always = yaml.safe_dump(
        {
            "spec": {
                "ttlStrategy": {"secondsAfterCompletion": 3600},
                "templateDefaults": {"retryStrategy": {"retryPolicy": "Always", "limit": "0"}},
            }
        }
    )
    objects = [
        namespace("dt", **enforced),
        namespace("kubeflow"),
        namespace("mlflow"),
        deployment("ml-pipeline", "ghcr.io/kubeflow/kfp-api-server:2.17.0"),
        deployment("workflow-controller", "quay.io/argoproj/workflow-controller:v4.0.8"),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "workflow-controller-configmap", "namespace": "kubeflow"},
         "data": {"workflowDefaults": always}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "pipeline-runner", "namespace": "dt"}},
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "runs"}, "spec": volume},
        *service("mlflow", "mlflow", 5000, 15000),
        *service("stranger", "mlflow", 5000, 15000),
        *service("seaweedfs", "kubeflow", 8333, 19000),
        definition("jobset.x-k8s.io", "v1alpha2", "JobSet"),
        definition(trainer, "v1alpha1", "TrainJob", fields=("runtimePatches",)),
        definition(trainer, "v1alpha1", "TrainingRuntime"),
        definition(trainer, "v1alpha1", "ClusterTrainingRuntime", scope="Cluster"),
        *({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"dreamteacher.io/pool": "gpu"}},
           "spec": {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]}} for name in ("gpu1", "gpu2")),
    ]  # fmt: skip
    apply(objects)
    shell("umask 0; install -d -m 2775 -g 0 /tmp/check-runs; chmod 2775 /tmp/check-runs; chown 0:0 /tmp/check-runs")
    shell("kubectl label node node1 dreamteacher.io/pool=cpu --overwrite; kubectl apply -k k8s/base -n dt")
    git = "--from-literal=GIT_HOST=git.example.org --from-literal=GIT_USERNAME=ada --from-literal=GIT_TOKEN=t"
    s3 = f"--from-literal=AWS_ACCESS_KEY_ID={KEYS[0]} --from-literal=AWS_SECRET_ACCESS_KEY={KEYS[1]}"
    for name, words in (("git", git), ("s3", s3)):
        shell(f"kubectl get secret dreamteacher-{name} -n dt 2>&1 || kubectl create secret generic dreamteacher-{name} -n dt {words}")
    for user, role in (("team", "edit"), ("guest", "")):
        shell(f"kubectl create serviceaccount {user} -n dt --dry-run=client -o yaml | kubectl apply -f -")
        if role:
            words = f"{user} -n dt --clusterrole={role} --serviceaccount=dt:{user}"
            shell(f"kubectl create rolebinding {words} --dry-run=client -o yaml | kubectl apply -f -")
        shell(f"kubectl config set-credentials {user} --token=$(kubectl create token {user} -n dt --duration=10h)")
        shell(f"kubectl config set-context {user} --user={user} --cluster=$(kubectl config get-clusters | tail -n 1)")
    shell("kubectl wait --for=condition=Established crd --all --timeout=60s; kubectl rollout status -n kubeflow deployment --timeout=120s")
    for kind, name in (("TrainingRuntime", "dreamteacher-torch"), ("ClusterTrainingRuntime", "torch-distributed")):
        apply(
            [
                {
                    "apiVersion": f"{trainer}/v1alpha1",
                    "kind": kind,
                    "metadata": {"name": name, **({"namespace": "dt"} if kind[0] == "T" else {})},
                    "spec": {},
                }
            ]
        )


def apply(objects: list[dict[str, Any]]) -> None:
    text = yaml.safe_dump_all(objects)
    subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True, check=True, stdout=subprocess.DEVNULL)


def beat(gpus: int = 8) -> None:
    """The nodes without a machine say that they are well; nobody else does it for them."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    size = {"cpu": "64", "memory": "400Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now}
    status = json.dumps({"status": {"capacity": size, "allocatable": size, "conditions": [ready]}})
    for name in ("gpu1", "gpu2"):
        shell(f"kubectl patch node {name} --subresource=status -p '{status}'")
        for taint in ("unreachable", "not-ready"):
            subprocess.run(["kubectl", "taint", "node", name, f"node.kubernetes.io/{taint}-"], capture_output=True, check=False)


class Recorder:
    """Hears what the Kubernetes client asks: {"METHOD PATH?QUERY": [[status, answer], ...]}, equal answers once."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[Any]]] = {}
        self.ask = rest.RESTClientObject.request
        recorder = self

        def request(client: Any, method: str, url: str, **options: Any) -> Any:
            parts = urlsplit(url)
            query = urlencode(sorted([*parse_qsl(parts.query), *(options.get("query_params") or [])]))
            try:
                found = recorder.ask(client, method, url, **options)
                status, text = found.status, found.data
            except rest.ApiException as error:
                recorder.keep(method, parts.path, query, error.status, error.body)
                raise
            recorder.keep(method, parts.path, query, status, text)
            return found

        rest.RESTClientObject.request = request

    def keep(self, method: str, path: str, query: str, status: int, text: Any) -> None:
        text = re.sub(r"dreamteacher-check-[a-z0-9]{5}", "dreamteacher-check-1", text.decode() if isinstance(text, bytes) else text or "")
        text = re.sub(r" on [0-9.]+:53\b", "", text)  # the resolver of the machine
        try:
            answer = text if path.endswith("/log") else relevant(path, trimmed(json.loads(text)))
        except ValueError:
            answer = text
        key = re.sub(r"dreamteacher-check-[a-z0-9]{5}", "dreamteacher-check-1", f"{method} {path}" + (f"?{query}" if query else ""))
        kept = self.answers.setdefault(key, [])
        if not kept or kept[-1] != [status, answer]:
            kept.append([status, answer])


def trimmed(answer: Any) -> Any:
    if isinstance(answer, list):
        return [trimmed(each) for each in answer]
    if isinstance(answer, dict):
        kept = {key: value for key, value in answer.items() if key not in DROPPED}
        return {key: "uid" if key == "uid" else trimmed(value) for key, value in kept.items()}
    return answer


def relevant(path: str, answer: Any) -> Any:
    """Without what `check` does not look at, and what differs from one time to the next."""
    if path == "/api/v1/pods" and "items" in answer:
        owners = [[owner["kind"] for owner in pod["metadata"].get("ownerReferences", [])] for pod in answer["items"]]
        answer["items"] = [pod for pod, kinds in zip(answer["items"], owners, strict=True) if {*kinds} & {"DaemonSet", "Node"}]
    if answer.get("kind") == "Deployment":
        answer["status"].pop("conditions", None)
    if answer.get("kind") == "SubjectAccessReview":
        answer["spec"].pop("groups", None)
    return answer


def record(scenario: Scenario, recorder: Recorder, base: dict[str, Any]) -> dict[str, Any]:
    """The answers that differ from those of the cluster on which all is well."""
    from pipelines.check import examine

    beat(scenario.gpus)
    shell(scenario.provoke or "true")
    time.sleep(scenario.pause)
    recorder.answers, printed = {}, StringIO()
    begin = time.monotonic()
    try:
        with redirect_stdout(printed):
            code = examine(
                scenario.read_profile(Path()),
                namespace=scenario.namespace,
                kfp_namespace=scenario.kfp_namespace,
                context=scenario.context,
                wait=60 if scenario.pod else None,
            )
    finally:
        shell(scenario.mend or "true")
    print(f"== {scenario.name}: exit code {code}, {time.monotonic() - begin:.0f} s\n$ {scenario.provoke}\n{printed.getvalue()}", flush=True)
    return {key: answers for key, answers in recorder.answers.items() if base.get(key) != answers}


def write(kept: dict[str, Any]) -> None:
    """A line for each question, so that a change shows."""
    parts = []
    for name, answers in kept.items():
        lines = ",\n".join(f"  {json.dumps(question)}: {json.dumps(found)}" for question, found in sorted(answers.items()))
        parts.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    ANSWERS.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def main(names: list[str]) -> None:
    os.chdir(mkdtemp())
    Path("kubeconfig").write_text(Path(os.environ["KUBECONFIG"]).read_text())  # users are added
    os.environ["KUBECONFIG"] = str(Path("kubeconfig").absolute())
    recorder, kept = Recorder(), json.loads(ANSWERS.read_text()) if ANSWERS.exists() else {}
    healthy()
    for scenario in SCENARIOS:
        if not names or scenario.name in names:
            kept[scenario.name] = record(scenario, recorder, kept.get("healthy", {}) if scenario.name != "healthy" else {})
            write(kept)


if __name__ == "__main__":
    main(sys.argv[1:])
