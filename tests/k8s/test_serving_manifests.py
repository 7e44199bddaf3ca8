"""The manifests of k8s/serving: valid for each Kubernetes that is supported, and free of what schemas do not see."""

from __future__ import annotations

import copy
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from manifest_lint import lint

from dreamteacher import cli
from dreamteacher.serving import deployment
from helpers import PROJECT

SERVING = PROJECT / "k8s/serving"
MADE: Made = {("ConfigMap", "dreamteacher-env"): set(), ("Secret", "dreamteacher-s3"): KEYS}  # of k8s/base, and of the user
needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here")
VERSIONS = ("1.34", "1.35", "1.36", "1.37")


def manifests(folder: Path = SERVING) -> list[dict[str, Any]]:
    """Those of a folder and of the folders that it names, before kustomize has patched them."""
    found = []
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        inside = manifests(folder / name) if (folder / name).is_dir() else yaml.safe_load_all((folder / name).read_text())
        found += list(inside)
    return found


def kustomize(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def one(kind: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    return next(each for each in found if each["kind"] == kind)


def containers(workload: dict[str, Any]) -> list[dict[str, Any]]:
    spec = workload["spec"]
    found: list[dict[str, Any]] = (spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"]["spec"]["containers"]
    return found


def powerset(*names: str) -> Iterator[tuple[str, ...]]:
    for size in range(len(names) + 1):
        yield from itertools.combinations(names, size)


def triton(found: list[dict[str, Any]]) -> dict[str, Any]:
    container: dict[str, Any] = one("Deployment", found)["spec"]["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize("version", VERSIONS)
def test_each_manifest_is_valid(version: str):
    for each in manifests():
        kubernetes_validate.validate(each, version, strict=True)


def test_nothing_that_schemas_miss_is_wrong():
    assert lint(manifests(), GIVEN) == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda m: one("Service", m)["spec"]["selector"].update(typo="x"), "Service dreamteacher-triton: its selector"),
        (lambda m: one("Service", m)["spec"]["ports"][0].update(targetPort="htpp"), "targetPort htpp is no port of its pods"),
        (lambda m: one("PodDisruptionBudget", m)["spec"]["selector"]["matchLabels"].update(a="b"), "matches no pod"),
        (lambda m: one("Deployment", m)["spec"]["selector"]["matchLabels"].update(a="b"), "its selector does not match its own pods"),
        (lambda m: one("Deployment", m)["spec"]["template"]["spec"].update(serviceAccountName="x"), "there is no ServiceAccount x"),
        (lambda m: one("Deployment", m)["spec"]["template"]["spec"].pop("securityContext"), "restricted: seccompProfile"),
        (lambda m: one("Deployment", m)["spec"]["template"]["spec"]["volumes"].pop(), "no volume dshm"),
        (lambda m: one("RoleBinding", m)["subjects"][0].update(name="x"), "there is no ServiceAccount x"),
        (lambda m: triton(m)["securityContext"].update(allowPrivilegeEscalation=True), "restricted: allowPrivilegeEscalation"),
        (lambda m: triton(m)["securityContext"].update(readOnlyRootFilesystem=False), "its root file system can be written"),
        (lambda m: triton(m)["securityContext"].pop("capabilities"), "restricted: capabilities"),
        (lambda m: triton(m).update(image="nvcr.io/nvidia/tritonserver"), "has no exact tag or digest"),
        (lambda m: triton(m)["resources"]["limits"].update(memory="8 GB"), "resources.limits.memory = 8 GB"),
        (lambda m: triton(m)["readinessProbe"]["httpGet"].update(port="x"), "readinessProbe: no port x"),
        (lambda m: triton(m).update(envFrom=[{"configMapRef": {"name": "x"}}]), "there is no ConfigMap x"),
        (lambda m: triton(m)["args"].append("--x=$(TYPO)"), "no variable TYPO"),
    ],
)
def test_each_rule_finds_its_fault(harm: Callable[[list[dict[str, Any]]], object], said: str):
    found = copy.deepcopy(manifests())
    harm(found)
    assert any(said in problem for problem in lint(found, GIVEN)), lint(found, GIVEN)


@needs_kubectl
@pytest.mark.parametrize("canary", [False, True])
@pytest.mark.parametrize("components", list(powerset("gpu", "network-policies", "monitoring")), ids="+".join)
def test_each_combination_renders_and_is_valid(tmp_path: Path, canary: bool, components: tuple[str, ...]):
    overlay = yaml.safe_load((PROJECT / "k8s/overlays/production/kustomization.yaml").read_text())
    overlay["resources"] = ["../../serving", *(["../../serving/canary"] if canary else [])]
    overlay["components"] = [f"../../components/{name}" for name in components]
    shutil.copytree(PROJECT / "k8s", tmp_path / "k8s")
    (tmp_path / "k8s/overlays/mine").mkdir()
    (tmp_path / "k8s/overlays/mine/kustomization.yaml").write_text(yaml.safe_dump(overlay))
    found = kustomize(tmp_path / "k8s/overlays/mine")
    assert lint(found, {("Secret", "dreamteacher-s3")}) == []
    for each in found:
        for version in VERSIONS if "monitoring.coreos.com" not in each["apiVersion"] else ():  # whose schemas no package brings
            kubernetes_validate.validate(each, version, strict=True)
    served = {each["metadata"]["name"]: each["spec"] for each in found if each["kind"] == "Deployment"}
    assert set(served) == {"dreamteacher-triton", *(["dreamteacher-triton-canary"] if canary else [])}
    for name, spec in served.items():
        about = spec["template"]["metadata"]["annotations"]
        assert about[deployment.ALIAS] == ("challenger" if name.endswith("canary") else "champion")
        assert spec["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "dreamteacher"
        assert ("nvidia.com/gpu" in spec["template"]["spec"]["containers"][0]["resources"]["limits"]) == ("gpu" in components)
        assert all("example.org" in each["image"] for each in spec["template"]["spec"]["initContainers"])
    followed = {command[2] for each in found if each["kind"] == "CronJob" for command in [containers(each)[0]["command"]]}
    assert followed == {f"--deployment={name}" for name in served}


@needs_kubectl
def test_the_production_overlay_renders_as_it_is():
    found = kustomize(PROJECT / "k8s/overlays/production")
    assert lint(found, {("Secret", "dreamteacher-s3")}) == []
    assert {each["metadata"]["namespace"] for each in found} == {"dreamteacher"}


def test_what_the_containers_start_is_what_the_command_line_takes():
    found = manifests()
    pods = one("Deployment", found)["spec"]["template"]
    assert {deployment.MODEL, deployment.ALIAS} <= set(pods["metadata"]["annotations"])
    fetching = pods["spec"]["initContainers"][0]["command"]
    following = containers(one("CronJob", found))[0]["command"]
    for command in (fetching, following):
        options = cli._parser().parse_args([word.replace("$(BACKEND)", "local") for word in command[1:]])
        assert options.run
    assert "--model-control-mode=none" in triton(found)["args"]


def test_no_pod_has_a_token_that_it_does_not_use():
    pods = one("Deployment", manifests())["spec"]["template"]["spec"]
    assert pods["automountServiceAccountToken"] is False


def test_the_role_allows_what_deploy_does_and_no_more():
    rules = {
        (rule["apiGroups"][0], resource): set(rule["verbs"]) for rule in one("Role", manifests())["rules"] for resource in rule["resources"]
    }
    assert rules == {("apps", "deployments"): {"get", "list", "patch"}, ("", "pods"): {"list"}}
