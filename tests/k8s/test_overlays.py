"""Each overlay, and each combination of components: rendered, valid for each Kubernetes that is supported, free of what schemas miss."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from custom_resources import VERSIONS, validate
from manifest_lint import lint
from rendering import MADE, kustomize, needs_kubectl, overlay, powerset

from dreamteacher.serving import deployment
from dreamteacher.serving.triton_repository import ENGINES
from helpers import PROJECT

pytestmark = needs_kubectl
COMPONENTS = PROJECT / "k8s/components"
PATCHING = (
    "gpu",
    "network-policies",
    "autoscaling",
    "priorities",
    "sampling",
    "gateway",
)  # they meet in the same objects: each combination
ADDING = ("monitoring", "retraining-watch", "mlflow", "postgres", "object-store")  # they only add some
IN_CLUSTER = [  # what then leads to them
    "MLFLOW_TRACKING_URI=http://dreamteacher-mlflow:5000",
    "MLFLOW_S3_ENDPOINT_URL=http://dreamteacher-object-store:8333",
    "AWS_DEFAULT_REGION=us-east-1",
]


@cache
def _valid(manifest: str) -> None:
    for version in VERSIONS:
        validate(json.loads(manifest), version)


def check(found: list[dict[str, Any]]) -> None:
    assert lint(found, MADE) == []
    for each in found:
        _valid(json.dumps(each))


def serving(tmp_path: Path, components: tuple[str, ...], *resources: str) -> list[dict[str, Any]]:
    more = {}
    if "mlflow" in components:
        literals = {"name": "dreamteacher-env", "options": {"disableNameSuffixHash": True}, "literals": IN_CLUSTER}
        more = {"configMapGenerator": [literals]}
    return overlay(tmp_path, "production", resources=["serving", *resources], components=components, **more)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copy")


@pytest.mark.parametrize("name", [path.name for path in sorted((PROJECT / "k8s/overlays").iterdir())])
def test_each_overlay_is_right_as_it_is(name: str):
    found = kustomize(PROJECT / "k8s/overlays" / name)
    check(found)
    assert len({each["metadata"].get("namespace") for each in found if each["kind"] != "Namespace"}) == 1


def test_one_triton_of_several_models_is_right(copy: Path):
    path = "/spec/template/metadata/annotations/dreamteacher.io~1model"
    patch = {"target": {"kind": "Deployment"}, "patch": f'[{{"op": "replace", "path": "{path}", "value": "nuclei,roads"}}]'}
    components = ("network-policies", "monitoring", "sampling")
    found = overlay(copy, "production", resources=["serving", "serving/canary"], components=components, patches=[patch])
    check(found)
    tritons = [each["spec"]["template"] for each in found if each["kind"] == "Deployment"]
    assert len(tritons) == 2  # the canary's, too
    for template in tritons:
        assert template["metadata"]["annotations"]["dreamteacher.io/model"] == "nuclei,roads"
        (fetching,) = template["spec"]["initContainers"]
        assert "$(MODEL)" in fetching["command"]
        assert {"fieldPath": "metadata.annotations['dreamteacher.io/model']"} in [
            each.get("valueFrom", {}).get("fieldRef") for each in fetching["env"] if each["name"] == "MODEL"
        ]


COMBINATIONS = [(patching, ()) for patching in powerset(*PATCHING)]
COMBINATIONS += [(patching, ADDING) for patching in powerset(*PATCHING) if len(patching) in (1, len(PATCHING))]


@pytest.mark.parametrize("canary", [False, True], ids=["", "canary"])
@pytest.mark.parametrize(("patching", "adding"), COMBINATIONS, ids=["+".join((*one, *two)) for one, two in COMBINATIONS])
def test_each_combination_of_serving_components_is_valid(copy: Path, patching: tuple[str, ...], adding: tuple[str, ...], canary: bool):
    by_weight = ("gateway-canary",) if canary and "gateway" in patching else ()
    beside = (["serving/canary"] if canary else []) + (["serving/webhook"] if adding else [])
    found = serving(copy, (*patching, *by_weight, *adding), *beside)
    check(found)
    served = {
        each["metadata"]["name"]: each["spec"] for each in found if each["kind"] == "Deployment" and "triton" in each["metadata"]["name"]
    }
    assert set(served) == {"dreamteacher-triton", *(["dreamteacher-triton-canary"] if canary else [])}
    for name, spec in served.items():
        about, pods = spec["template"]["metadata"], spec["template"]["spec"]
        assert about["annotations"][deployment.ALIAS] == ("challenger" if name.endswith("canary") else "champion")
        assert about["labels"]["app.kubernetes.io/part-of"] == "dreamteacher"
        assert ("nvidia.com/gpu" in pods["containers"][0]["resources"]["limits"]) == ("gpu" in patching)
        assert (ENGINES in [mount["mountPath"] for mount in pods["containers"][0]["volumeMounts"]]) == ("gpu" in patching)
        assert pods.get("priorityClassName") == ("dreamteacher-serving" if "priorities" in patching else None)
        assert all("example.org" in each["image"] for each in pods["initContainers"])
    assert ("replicas" in served["dreamteacher-triton"]) == ("autoscaling" not in patching)
    commands = {each["metadata"]["name"]: _container(each)["command"] for each in found if each["kind"] == "CronJob"}
    assert {words[2] for name, words in commands.items() if "follow" in name} == {f"--deployment={name}" for name in served}


@pytest.mark.parametrize("adding", [each for each in powerset(*ADDING) if len(each) == 1 or len(each) == len(ADDING) - 1], ids="+".join)
def test_components_that_only_add_objects_do_not_need_each_other(copy: Path, adding: tuple[str, ...]):
    check(serving(copy, ("network-policies", *adding)))


@pytest.mark.parametrize(
    "others", list(powerset("network-policies", "priorities", "gateway", "monitoring", "retraining-watch")), ids="+".join
)
def test_kserve_runs_the_same_pods(copy: Path, others: tuple[str, ...]):
    found = serving(copy, (*others, "kserve"))
    check(found)
    assert not {"Deployment", "Role", "RoleBinding"} & {each["kind"] for each in found}
    ours = yaml.safe_load((PROJECT / "k8s/serving/triton/deployment.yaml").read_text().partition("\n---")[0])["spec"]["template"]
    theirs = yaml.safe_load((COMPONENTS / "kserve/inferenceservice.yaml").read_text())["spec"]["predictor"]
    about = {"minReplicas", "maxReplicas", "deploymentStrategy", "labels", "annotations"}
    theirs["containers"][0]["name"] = "triton"  # KServe asks for its own name
    assert {key: value for key, value in theirs.items() if key not in about} == ours["spec"]
    assert theirs["annotations"] == ours["metadata"]["annotations"]
    assert ours["metadata"]["labels"].items() <= theirs["labels"].items()


@pytest.mark.parametrize("nodes", [False, True], ids=["", "multi-node"])
@pytest.mark.parametrize("components", list(powerset("quota", "kueue", "priorities")), ids="+".join)
def test_each_combination_of_training_components_is_valid(copy: Path, components: tuple[str, ...], nodes: bool):
    found = overlay(copy, "training", resources=["base", *(["multi-node"] if nodes else [])], components=components)
    check(found)
    runtimes = [
        each["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"] for each in found if each["kind"] == "TrainingRuntime"
    ]
    wanted = "dreamteacher-training" if "priorities" in components else None
    assert [each["template"]["spec"].get("priorityClassName") for each in runtimes] == ([wanted] if nodes else [])


def test_every_component_is_in_a_combination_and_in_an_overlay_to_be_chosen():
    names = {path.name for path in COMPONENTS.iterdir()}
    assert names == {*PATCHING, *ADDING, "gateway-canary", "kserve", "quota", "kueue"}
    offered = "".join((PROJECT / f"k8s/overlays/{each}/kustomization.yaml").read_text() for each in ("production", "training"))
    assert names == {name for name in names if f"../../components/{name}" in offered}


def test_weights_are_those_of_champion_and_challenger(copy: Path):
    found = serving(copy, ("gateway", "gateway-canary"), "serving/canary")
    routes = {each["kind"]: each["spec"]["rules"] for each in found if each["kind"].endswith("Route")}
    for rules, port in ((routes["HTTPRoute"], 8000), (routes["GRPCRoute"], 8001)):
        assert [(each["name"], each["port"], each["weight"]) for each in rules[0]["backendRefs"]] == [
            ("dreamteacher-triton", port, 90),
            ("dreamteacher-triton-canary", port, 10),
        ]
    selectors = {each["metadata"]["name"]: each["spec"]["selector"]["dreamteacher.io/track"] for each in found if each["kind"] == "Service"}
    assert selectors == {"dreamteacher-triton": "stable", "dreamteacher-triton-canary": "canary"}


def test_the_autoscaler_asks_for_its_own_namespace_and_spares_what_the_budget_needs(copy: Path):
    found = overlay(copy, "production", resources=["serving"], components=("autoscaling",), namespace="elsewhere")
    (scaler,) = [each["spec"] for each in found if each["kind"] == "ScaledObject"]
    assert scaler["triggers"][0]["metadata"]["query"].count('{namespace="elsewhere", job="dreamteacher-triton"}') == 2
    (budget,) = [each["spec"] for each in found if each["kind"] == "PodDisruptionBudget"]
    assert scaler["minReplicaCount"] - budget["maxUnavailable"] >= 1
    behaviour = scaler["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behaviour["scaleDown"]["stabilizationWindowSeconds"] > 10 * behaviour["scaleUp"]["stabilizationWindowSeconds"]


def test_serving_has_a_higher_priority_than_training():
    values = {each["metadata"]["name"]: each["value"] for each in yaml.safe_load_all((COMPONENTS / "priorities/classes.yaml").read_text())}
    assert values["dreamteacher-serving"] > values["dreamteacher-training"] > 0  # 0: what has no class, such as KFP's steps


@pytest.mark.parametrize(
    ("component", "place", "typo"),
    [
        ("autoscaling", ("spec", "advanced"), "horizontalPodAutoscalerConfg"),
        ("gateway", ("spec", "listeners", 0), "hostName"),
        ("kueue", ("spec",), "namespaceSelectr"),
        ("kserve", ("spec", "predictor"), "minReplica"),
        ("kserve", ("spec", "predictor", "containers", 0), "imge"),
        ("monitoring", ("spec",), "endpoint"),
        ("monitoring", ("metadata",), "label"),
    ],
)
def test_a_typo_in_a_custom_resource_would_be_found(component: str, place: tuple[str | int, ...], typo: str):
    files = sorted((COMPONENTS / component).glob("*.yaml"))
    custom = [each for path in files for each in yaml.safe_load_all(path.read_text()) if each["kind"] not in ("Component", "Kustomization")]
    one = custom[0]
    inside = one
    for step in place:
        inside = inside[step]
    validate(one, VERSIONS[-1])
    inside[typo] = {}
    with pytest.raises(Exception, match=typo):
        validate(one, VERSIONS[-1])


def _container(cronjob: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    return container
