"""Each rule of manifest_lint detects its fault: valid manifests are mutated in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from manifest_lint import lint
from rendering import MADE, kustomize, needs_kubectl, overlay

from helpers import PROJECT

pytestmark = needs_kubectl
Stack = list[dict[str, Any]]
COMPONENTS = ("network-policies", "gpu", "monitoring", "autoscaling", "priorities", "gateway", "gateway-canary")


@pytest.fixture(scope="module")
def dev() -> Stack:
    """Everything inside one namespace, with network policies."""
    return kustomize(PROJECT / "k8s/overlays/dev")


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return overlay(tmp_path_factory.mktemp("lint"), "production", resources=["serving", "serving/canary"], components=COMPONENTS)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return overlay(tmp_path_factory.mktemp("lint"), "training", resources=["base"], components=("quota", "kueue"))


def get(found: Stack, kind: str, name: str = "dreamteacher-triton") -> dict[str, Any]:
    return next(each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name))


def pods(found: Stack, kind: str = "Deployment", name: str = "dreamteacher-triton") -> dict[str, Any]:
    spec: dict[str, Any] = get(found, kind, name)["spec"]["template"]["spec"]
    return spec


def triton(found: Stack) -> dict[str, Any]:
    container: dict[str, Any] = pods(found)["containers"][0]
    return container


def rule(found: Stack, name: str, way: str) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = get(found, "NetworkPolicy", name)["spec"][way]
    return rules


def without_port(found: Stack, name: str, way: str, *ports: int | str) -> None:
    kept = [each for each in rule(found, name, way) if "ports" in each]
    for each in kept:
        each["ports"] = [port for port in each["ports"] if port["port"] not in ports]
    get(found, "NetworkPolicy", name)["spec"][way] = [each for each in kept if each["ports"]]  # without ports it would open all


def fails(found: Stack, mutate: Callable[[Stack], object], message: str) -> None:
    assert lint(found, MADE) == []
    broken = copy.deepcopy(found)
    mutate(broken)
    problems = lint(broken, MADE)
    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        # what matches nothing, and what leads nowhere
        (lambda m: get(m, "Service")["spec"]["selector"].update(typo="x"), "matches no pod, so it has no endpoints"),
        (lambda m: get(m, "Service")["spec"].pop("selector"), "matches no pod, so it has no endpoints"),
        (lambda m: get(m, "Deployment")["spec"].update(replicas=0), "its pods have 0 replicas, so it has no endpoints"),
        (lambda m: get(m, "Service")["spec"]["ports"][0].update(targetPort="htpp"), "targetPort htpp is no port of Deployment"),
        (lambda m: get(m, "Service")["spec"]["ports"][0].update(targetPort=8080), "targetPort 8080 is no port of Deployment"),
        (lambda m: get(m, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].update(a="b"), "matches no pod"),
        (lambda m: get(m, "PodDisruptionBudget")["spec"].update(maxUnavailable=0), "no node can be drained"),
        (lambda m: get(m, "PodDisruptionBudget")["spec"].update(minAvailable=2), "minAvailable 2 of 2 replicas"),
        (lambda m: get(m, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].update(a="b"), "matches no pod"),
        (lambda m: get(m, "NetworkPolicy")["spec"].update(policyTypes=["Ingress"]), "it has egress rules and no policyType Egress"),
        (lambda m: get(m, "Deployment")["spec"]["selector"]["matchLabels"].update(a="b"), "its selector does not match its own pods"),
        (
            lambda m: get(m, "StatefulSet", "dreamteacher-postgres")["spec"].update(serviceName="x"),
            "StatefulSet dreamteacher-postgres: there is no Service x",
        ),
        (lambda m: get(m, "RoleBinding", "dreamteacher-follow")["subjects"][0].update(name="x"), "there is no ServiceAccount x"),
        (lambda m: get(m, "RoleBinding", "dreamteacher-follow")["roleRef"].update(name="x"), "there is no Role x"),
        (lambda m: m.append(get(m, "Service")), "Service dreamteacher-triton: is there twice"),
        (lambda m: pods(m).update(serviceAccountName="x"), "there is no ServiceAccount x"),
        (lambda m: pods(m).update(priorityClassName="x"), "there is no PriorityClass x"),
        (lambda m: pods(m)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].update(a="b"), "does not match its own pods"),
        # volumes, config maps, secrets, keys
        (lambda m: pods(m)["volumes"].pop(), "there is no volume dshm"),
        (lambda m: triton(m)["volumeMounts"].pop(), "nobody mounts volume dshm"),
        (lambda m: triton(m)["volumeMounts"][0].update(mountPath="/tmp"), "two volumes at /tmp"),
        (lambda m: pods(m)["volumes"].append({"name": "c", "configMap": {"name": "x"}}), "volume c: there is no ConfigMap x"),
        (
            lambda m: pods(m)["volumes"].append(
                {"name": "c", "configMap": {"name": "dreamteacher-env", "items": [{"key": "x", "path": "x"}]}}
            ),
            "volume c: ConfigMap dreamteacher-env has no key x",
        ),
        (lambda m: pods(m)["volumes"].append({"name": "c", "secret": {"secretName": "x"}}), "volume c: there is no Secret x"),
        (
            lambda m: pods(m)["volumes"].append({"name": "c", "persistentVolumeClaim": {"claimName": "x"}}),
            "volume c: there is no PersistentVolumeClaim x",
        ),
        (lambda m: triton(m).update(envFrom=[{"configMapRef": {"name": "x"}}]), "there is no ConfigMap x"),
        (lambda m: triton(m).update(envFrom=[{"secretRef": {"name": "x"}}]), "there is no Secret x"),
        (
            lambda m: triton(m)["env"].append({"name": "A", "valueFrom": {"configMapKeyRef": {"name": "dreamteacher-env", "key": "x"}}}),
            "variable A: ConfigMap dreamteacher-env has no key x",
        ),
        (
            lambda m: triton(m)["env"].append({"name": "A", "valueFrom": {"secretKeyRef": {"name": "dreamteacher-s3", "key": "x"}}}),
            "variable A: Secret dreamteacher-s3 has no key x",
        ),
        (lambda m: get(m, "ConfigMap", "dreamteacher-mlflow")["data"].pop("PGUSER"), "has no key PGUSER"),
        (lambda m: triton(m)["args"].append("--x=$(TYPO)"), "no variable TYPO"),
        (lambda m: triton(m)["env"].append({"name": "A", "value": "$(B)"}), "variable A: no variable B before it"),
        (lambda m: triton(m)["env"].append({"name": "HOME", "value": "/"}), "variable HOME is there twice"),
        (
            lambda m: m.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "b"}}),
            "Secret s: it is in the manifests with its values",
        ),
        # Pod Security `restricted`, and more
        (lambda m: pods(m)["securityContext"].pop("seccompProfile"), "restricted: seccompProfile"),
        (lambda m: triton(m)["securityContext"].update(seccompProfile={"type": "Unconfined"}), "restricted: seccompProfile"),
        (lambda m: triton(m)["securityContext"].update(runAsNonRoot=False), "restricted: runAsNonRoot"),
        (lambda m: triton(m)["securityContext"].update(runAsUser=0), "restricted: runAsUser is 0"),
        (lambda m: triton(m)["securityContext"].update(allowPrivilegeEscalation=True), "restricted: allowPrivilegeEscalation"),
        (lambda m: triton(m)["securityContext"].update(privileged=True), "restricted: it is privileged"),
        (lambda m: triton(m)["securityContext"].update(procMount="Unmasked"), "restricted: procMount"),
        (lambda m: triton(m)["securityContext"].update(appArmorProfile={"type": "Unconfined"}), "restricted: appArmorProfile"),
        (lambda m: triton(m)["securityContext"].pop("capabilities"), "restricted: capabilities are not dropped"),
        (lambda m: triton(m)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]), "capabilities SYS_ADMIN are added"),
        (lambda m: triton(m)["ports"][0].update(hostPort=8000), "restricted: it has a hostPort"),
        (lambda m: triton(m)["livenessProbe"]["httpGet"].update(host="x"), "restricted: a probe or hook asks another host"),
        (lambda m: pods(m).update(hostNetwork=True), "restricted: hostNetwork is true"),
        (lambda m: pods(m)["securityContext"].update(sysctls=[{"name": "kernel.msgmax", "value": "1"}]), "restricted: sysctls"),
        (lambda m: pods(m)["volumes"][1].update(hostPath={"path": "/"}), "restricted: volume tmp is a hostPath"),
        (lambda m: triton(m)["securityContext"].update(readOnlyRootFilesystem=False), "its root file system can be written"),
        (lambda m: pods(m).pop("automountServiceAccountToken"), "it mounts a token of dreamteacher-triton, to which no role is bound"),
        # images, resources, ports
        (lambda m: triton(m).update(image="nvcr.io/nvidia/tritonserver"), "has no exact tag or digest"),
        (lambda m: triton(m).update(image="nvcr.io/nvidia/tritonserver:latest"), "has no exact tag or digest"),
        (lambda m: triton(m).update(image="registry:5000/tritonserver"), "has no exact tag or digest"),
        (lambda m: triton(m)["resources"]["limits"].update(memory="8 GB"), "limits.memory = 8 GB is no quantity"),
        (lambda m: triton(m)["resources"]["limits"].update(memory="8K"), "limits.memory = 8K is no quantity"),
        (lambda m: triton(m)["resources"]["limits"].update(memory="500m"), "limits.memory = 500m is not a whole number"),
        (lambda m: triton(m)["resources"]["limits"].pop("cpu"), "it has no resources.limits.cpu"),
        (lambda m: triton(m)["resources"]["requests"].update(cpu="9"), "resources.requests.cpu = 9 and its limit is 2"),
        (lambda m: triton(m)["resources"]["limits"].update({"nvidia.com/gpu": "0.5"}), "nvidia.com/gpu = 0.5 is not a whole number"),
        (lambda m: triton(m)["resources"]["requests"].update({"nvidia.com/gpu": "1"}), "requests.nvidia.com/gpu has no limit"),
        (lambda m: pods(m)["volumes"][0]["emptyDir"].update(sizeLimit="10 G"), "sizeLimit = 10 G is no quantity"),
        (
            lambda m: get(m, "StatefulSet", "dreamteacher-postgres")["spec"]["volumeClaimTemplates"][0]["spec"]["resources"][
                "requests"
            ].update(storage="10GB"),
            "storage = 10GB is no quantity",
        ),
        (lambda m: triton(m)["readinessProbe"]["httpGet"].update(port="x"), "readinessProbe: no port x"),
        (lambda m: triton(m)["readinessProbe"]["httpGet"].update(port=8080), "readinessProbe: no port 8080"),
        (lambda m: triton(m).update(startupProbe={"grpc": {"port": 9}}), "startupProbe: no port 9"),
        (lambda m: triton(m)["ports"].append({"containerPort": 8000}), "port 8000 is there twice"),
        (lambda m: triton(m)["ports"].append({"name": "http", "containerPort": 1}), "port http is there twice"),
        (lambda m: pods(m)["containers"].append(triton(m)), "two containers are called triton"),
        # network policies that cut what is needed
        (lambda m: without_port(m, "dreamteacher-triton", "ingress", "http"), "let nobody ask port 8000"),
        (lambda m: without_port(m, "dreamteacher-triton", "ingress", "grpc"), "let nobody ask port 8001"),
        (lambda m: without_port(m, "dreamteacher-triton", "ingress", "metrics"), "let nobody ask port 8002"),
        (
            lambda m: without_port(m, "dreamteacher-triton", "egress", 5000),
            "cut MLFLOW_TRACKING_URI (dreamteacher-mlflow, port 5000): no egress",
        ),
        (
            lambda m: without_port(m, "dreamteacher-triton", "egress", 8333),
            "cut MLFLOW_S3_ENDPOINT_URL (dreamteacher-object-store, port 8333)",
        ),
        (lambda m: without_port(m, "dreamteacher-triton", "egress", 53), "Deployment dreamteacher-triton: network policies cut names"),
        (lambda m: rule(m, "dreamteacher-triton", "egress")[0]["ports"].pop(0), "cut names (DNS, port 53): no egress"),  # UDP alone
        (lambda m: without_port(m, "dreamteacher-follow", "egress", 6443), "cut the Kubernetes API (kubernetes.default, port 6443)"),
        (lambda m: without_port(m, "dreamteacher-follow", "egress", 443), "cut the Kubernetes API (kubernetes.default, port 443)"),
        (
            lambda m: without_port(m, "dreamteacher-mlflow", "egress", 5432),
            "cut MLFLOW_BACKEND_STORE_URI (dreamteacher-postgres, port 5432)",
        ),
        (
            lambda m: without_port(m, "dreamteacher-mlflow", "egress", 8333),
            "Deployment dreamteacher-mlflow: network policies cut MLFLOW_S3",
        ),
        (
            lambda m: rule(m, "dreamteacher-postgres", "ingress")[0]["from"][0]["podSelector"]["matchLabels"].update(a="b"),
            "(dreamteacher-postgres, port 5432): no ingress to StatefulSet dreamteacher-postgres",
        ),
        (
            lambda m: rule(m, "dreamteacher-mlflow", "ingress")[0].update({"from": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]}),
            "(dreamteacher-mlflow, port 5000): no ingress to Deployment dreamteacher-mlflow",
        ),
        (
            lambda m: rule(m, "dreamteacher-triton", "egress")[1].update(to=[{"podSelector": {"matchLabels": {"a": "b"}}}]),
            "Deployment dreamteacher-triton: network policies cut MLFLOW_TRACKING_URI",
        ),
        (lambda m: m.remove(get(m, "NetworkPolicy", "dreamteacher-bucket")), "Job dreamteacher-bucket: network policies cut ENDPOINT"),
    ],
)
def test_each_mistake_in_one_namespace_is_found(dev: Stack, mutate: Callable[[Stack], object], message: str):
    fails(dev, mutate, message)


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (lambda m: get(m, "Deployment")["spec"].update(replicas=2), "has replicas of its own, to which each apply sets it back"),
        (lambda m: get(m, "ScaledObject")["spec"]["scaleTargetRef"].update(name="x"), "there is no Deployment x"),
        (lambda m: get(m, "ScaledObject")["spec"].update(minReplicaCount=9), "minReplicaCount is above maxReplicaCount"),
        (
            lambda m: m.append(
                {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": get(m, "ScaledObject")["spec"] | {"maxReplicas": 2}}
            ),
            "dreamteacher-triton has two autoscalers",
        ),
        (
            lambda m: (
                get(m, "PodDisruptionBudget")["spec"].update(minAvailable=1),
                get(m, "ScaledObject")["spec"].update(minReplicaCount=1),
            ),
            "minAvailable 1 of 1 replicas",
        ),
        (lambda m: get(m, "ServiceMonitor")["spec"]["selector"]["matchLabels"].update(a="b"), "matches no Service"),
        (lambda m: get(m, "ServiceMonitor")["spec"]["endpoints"][0].update(port="x"), "has no port x"),
        (lambda m: get(m, "HTTPRoute")["spec"]["rules"][0]["backendRefs"][1].update(name="x"), "there is no Service x"),
        (lambda m: get(m, "HTTPRoute")["spec"]["rules"][0]["backendRefs"][1].update(port=1), "has no port 1"),
        (lambda m: get(m, "GRPCRoute")["spec"]["parentRefs"][0].update(name="x"), "there is no Gateway x"),
        (lambda m: get(m, "GRPCRoute")["spec"]["parentRefs"][0].update(sectionName="x"), "has no listener x"),
        (lambda m: [each.update(weight=0) for each in get(m, "HTTPRoute")["spec"]["rules"][0]["backendRefs"]], "all its weights are 0"),
        (
            lambda m: get(m, "Deployment", "dreamteacher-triton-canary")["spec"]["selector"]["matchLabels"].pop("dreamteacher.io/track"),
            "its selector matches the pods of Deployment dreamteacher-triton too",
        ),
        (
            lambda m: rule(m, "dreamteacher-triton", "egress")[1].update(
                to=[{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}}}]
            ),
            "cut MLFLOW_TRACKING_URI (mlflow.mlflow.svc, port 5000): no egress",
        ),
    ],
)
def test_each_mistake_in_production_is_found(production: Stack, mutate: Callable[[Stack], object], message: str):
    fails(production, mutate, message)


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (
            lambda m: get(m, "ResourceQuota", "dreamteacher-training")["spec"]["hard"].update({"requests.nvidia.com/gpu": "x"}),
            "= x is no quantity",
        ),
        (lambda m: get(m, "LocalQueue", "dreamteacher")["spec"].update(clusterQueue="x"), "there is no ClusterQueue x"),
        (
            lambda m: get(m, "ClusterQueue", "dreamteacher")["spec"]["resourceGroups"][0]["flavors"][0].update(name="x"),
            "there is no ResourceFlavor x",
        ),
        (
            lambda m: get(m, "ClusterQueue", "dreamteacher")["spec"]["resourceGroups"][0]["coveredResources"].pop(),
            "does not have the coveredResources",
        ),
        (
            lambda m: get(m, "ClusterQueue", "dreamteacher")["spec"]["resourceGroups"][0]["flavors"][0]["resources"][1].update(
                nominalQuota="1GB"
            ),
            "memory = 1GB is no quantity",
        ),
        (
            lambda m: get(m, "PersistentVolumeClaim", "dreamteacher-runs")["spec"]["resources"]["requests"].update(storage="200 Gi"),
            "storage = 200 Gi is no quantity",
        ),
    ],
)
def test_each_mistake_in_the_training_manifests_is_found(training: Stack, mutate: Callable[[Stack], object], message: str):
    fails(training, mutate, message)


def test_a_policy_with_a_range_of_ports_or_all_ports_cuts_nothing(dev: Stack):
    open_wide = copy.deepcopy(dev)
    get(open_wide, "NetworkPolicy")["spec"]["egress"] = [{"ports": [{"port": 1, "endPort": 65535}, {"port": 53, "protocol": "UDP"}]}]
    get(open_wide, "NetworkPolicy", "dreamteacher-mlflow")["spec"]["egress"] = [{}]
    assert lint(open_wide, MADE) == []
