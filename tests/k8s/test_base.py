"""The manifests of k8s/base against Kubernetes' own schemas, and against what the code asks for."""

import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dreamteacher.cluster.trainjob import GROUP, PLURAL, Nodes
from helpers import PROJECT

BASE = PROJECT / "k8s/base"
KUSTOMIZATION = yaml.safe_load((BASE / "kustomization.yaml").read_text())


def objects() -> list[dict[str, Any]]:
    return [each for file in KUSTOMIZATION["resources"] for each in yaml.safe_load_all((BASE / file).read_text())]


def one(kind: str) -> dict[str, Any]:
    (found,) = [each for each in objects() if each["kind"] == kind]
    return found


def test_every_file_is_part_of_the_base():
    assert {path.name for path in BASE.glob("*.yaml")} == {*KUSTOMIZATION["resources"], "kustomization.yaml"}


@pytest.mark.parametrize("found", objects(), ids=lambda found: found["kind"])
def test_manifests_are_valid_and_a_typo_would_be_found(found: dict[str, Any]):
    kubernetes_validate.validate(found, "1.32", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found | {"metadat": {}}, "1.32", strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here")
def test_kustomize_renders_it():
    done = subprocess.run(["kubectl", "kustomize", str(BASE)], capture_output=True, text=True, check=True)
    rendered = list(yaml.safe_load_all(done.stdout))
    assert sorted(each["kind"] for each in rendered) == sorted(each["kind"] for each in objects())
    assert {each["metadata"]["labels"]["app.kubernetes.io/part-of"] for each in rendered} == {"dreamteacher"}


def test_role_allows_what_the_step_does_and_no_more():
    rules = {(rule["apiGroups"][0], resource): set(rule["verbs"]) for rule in one("Role")["rules"] for resource in rule["resources"]}
    assert rules == {
        (GROUP, PLURAL): {"create", "get", "list", "watch", "delete"},
        (GROUP, "trainingruntimes"): {"get"},
        ("", "pods"): {"get", "list", "watch"},
        ("", "events"): {"list"},
        ("", "pods/log"): {"get"},
    }
    binding = one("RoleBinding")
    assert binding["roleRef"]["name"] == one("Role")["metadata"]["name"]


def test_volume_is_the_one_that_step_and_nodes_mount():
    claim = one("PersistentVolumeClaim")
    assert claim["metadata"]["name"] == Nodes.model_fields["claim"].default
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_no_secret_is_in_the_tree():
    assert "Secret" not in {each["kind"] for each in objects()}


def test_what_the_steps_refer_to_is_here_or_told_to_be_made():
    environment_settings = yaml.safe_load((PROJECT / "pipelines/resources.yaml").read_text())["environment"]
    environment = one("ConfigMap")
    assert environment_settings["config_map"] == {environment["metadata"]["name"]: list(environment["data"])}
    assert environment_settings["volume"]["claim"] == one("PersistentVolumeClaim")["metadata"]["name"]
    assert environment["data"]["DREAMTEACHER_DVC_CACHE"].startswith(f"{environment_settings['volume']['mount']}/")
    commands = re.findall(r"create secret generic (\S+) (.*)", (BASE / "kustomization.yaml").read_text())
    secrets = environment_settings["secrets"] | {
        name: keys for step in environment_settings["step_secrets"].values() for name, keys in step.items()
    }
    assert {name: re.findall(r"--from-literal=(\w+)", keys) for name, keys in commands} == secrets
