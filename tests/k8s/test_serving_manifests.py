"""The manifests of k8s/serving against what the code takes, and with no more rights than it needs."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml
from custom_resources import VERSIONS
from manifest_lint import lint
from rendering import MADE, kustomize, needs_kubectl

from dreamteacher import cli
from dreamteacher.serving import deployment
from helpers import PROJECT

pytestmark = needs_kubectl
SERVING = PROJECT / "k8s/serving"
GIVEN = MADE | {("ConfigMap", "dreamteacher-env"): set()}  # of k8s/base


@pytest.fixture(scope="module")
def serving() -> list[dict[str, Any]]:
    return kustomize(SERVING)


def one(kind: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    return next(each for each in found if each["kind"] == kind)


def pods_of(workload: dict[str, Any]) -> dict[str, Any]:
    spec = workload["spec"]
    template: dict[str, Any] = (spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"]
    return template


def component(name: str) -> list[dict[str, Any]]:
    folder = PROJECT / "k8s/components" / name
    files = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [each for file in files for each in yaml.safe_load_all((folder / file).read_text())]


def test_the_serving_base_is_valid_without_an_overlay(serving: list[dict[str, Any]]):
    assert lint(serving, GIVEN) == []
    for version in VERSIONS:
        for each in serving:
            kubernetes_validate.validate(each, version, strict=True)


def test_what_the_containers_start_is_what_the_command_line_takes(serving: list[dict[str, Any]]):
    pods = pods_of(one("Deployment", serving))
    assert {deployment.MODEL, deployment.ALIAS} <= set(pods["metadata"]["annotations"])
    fetching = pods["spec"]["initContainers"][0]["command"]
    following = pods_of(one("CronJob", serving))["spec"]["containers"][0]["command"]
    watching = pods_of(one("CronJob", component("retraining-watch")))["spec"]["containers"][0]["command"]
    for command in (fetching, following, watching):
        options = cli.build_parser().parse_args([word.replace("$(BACKEND)", "local") for word in command[1:]])
        assert options.run
    assert "--model-control-mode=none" in pods["spec"]["containers"][0]["args"]


def test_no_pod_has_a_token_that_it_does_not_use(serving: list[dict[str, Any]]):
    assert pods_of(one("Deployment", serving))["spec"]["automountServiceAccountToken"] is False


def test_the_role_allows_what_deploy_does_and_no_more(serving: list[dict[str, Any]]):
    rules = {(rule["apiGroups"][0], each): set(rule["verbs"]) for rule in one("Role", serving)["rules"] for each in rule["resources"]}
    assert rules == {("apps", "deployments"): {"get", "list", "patch"}, ("", "pods"): {"list"}}
