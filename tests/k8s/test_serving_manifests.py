"""The manifests of k8s/serving: valid for each Kubernetes that is supported, and free of what schemas do not see."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
import yaml
from manifest_lint import lint

from dreamteacher import cli
from dreamteacher.serving import deployment
from helpers import PROJECT

SERVING = PROJECT / "k8s/serving"
GIVEN = {("ConfigMap", "dreamteacher-env"), ("Secret", "dreamteacher-s3")}  # of k8s/base, and of the user
VERSIONS = ("1.34", "1.35", "1.36", "1.37")


def manifests() -> list[dict[str, Any]]:
    files = yaml.safe_load((SERVING / "kustomization.yaml").read_text())["resources"]
    return [each for file in files for each in yaml.safe_load_all((SERVING / file).read_text())]


def one(kind: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    return next(each for each in found if each["kind"] == kind)


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


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here")
def test_kustomize_renders_it_and_labels_the_pods():
    done = subprocess.run(["kubectl", "kustomize", str(SERVING)], capture_output=True, text=True, check=True)
    rendered = list(yaml.safe_load_all(done.stdout))
    assert lint(rendered, GIVEN) == []
    template = one("Deployment", rendered)["spec"]["template"]
    assert deployment.SERVING.split(",")[0] == "app.kubernetes.io/part-of=dreamteacher"
    assert (
        template["metadata"]["labels"].items()
        >= {"app.kubernetes.io/part-of": "dreamteacher", "app.kubernetes.io/component": "serving"}.items()
    )


def test_what_the_containers_start_is_what_the_command_line_takes():
    found = manifests()
    pods = one("Deployment", found)["spec"]["template"]
    assert {deployment.MODEL, deployment.ALIAS} <= set(pods["metadata"]["annotations"])
    fetching = pods["spec"]["initContainers"][0]["command"]
    following = one("CronJob", found)["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
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
