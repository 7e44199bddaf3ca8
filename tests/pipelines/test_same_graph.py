"""dvc.yaml and the compiled pipeline are the same graph: stages, what flows between them, and the settings that each depends on."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from kfp.compiler import Compiler

from dreamteacher.stages.find_commit import SECTIONS
from helpers import NUCLEI, PROJECT
from pipelines import pretrain, retrain

AROUND = {"find-commit", "fetch-data", "list-recipes", "list-passes", "record", "finish"}  # steps of the pipeline that are no stages
# What DVC's interpreters and label distillations know of teacher and features is their record, which features-of copies.
FEATURES_OF = {"train-interpreter": {"train-teacher"}, "distill-labels": {"train-teacher", "distill-features"}}
MARKS = ("nothing", "no-teacher", "features-of")
BY_NAME = {"teachers", "recipes", "label_recipes", "preset"}  # find-commit resolves them into the groups that they change
# What a step is given beside what dvc.yaml names: publish stores it with the registered version, which where DVC runs `promote` does;
# report finds the interpreters where they lie, whose changes reach it through label distillation.
BESIDE = {"publish": {"ingest", "train-teacher", "distill-features"}, "report": {"train-interpreter"}}
Graph = dict[str, tuple[set[str], set[str]]]  # stage: (stages whose outputs it reads, settings it depends on)


def graph_of_dvc(text: str, folder: Path) -> Graph:
    """As DVC itself reads dvc.yaml; `nothing` only makes marks."""
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (folder / "params.yaml").write_text(NUCLEI.read_text())
    (folder / "dvc.yaml").write_text(text)
    graph: Graph = {
        name: (set(), {key.partition(".")[0] for key in stage.get("do", stage).get("params", [])} - BY_NAME)
        for name, stage in yaml.safe_load(text)["stages"].items()
        if name not in MARKS
    }
    with Repo(str(folder)) as repo:
        for reader, maker in repo.index.graph.edges:
            names = [stage.name.split("@")[0] for stage in (reader, maker)]
            # evaluate takes all of artifacts/backbones, in which lies what label distillation made as well; report shows that, too.
            if names[0] in graph and names[1] not in ("nothing", "no-teacher") and names != ["evaluate", "distill-labels"]:
                graph[names[0]][0].update(FEATURES_OF[names[0]] if names[1] == "features-of" else {names[1]})
    return graph


def graph_of_kfp(spec: dict[str, Any]) -> Graph:
    """Of the compiled pipeline: what reaches a step through the groups that it lies in."""
    graph: Graph = defaultdict(lambda: (set(), set()))

    def visit(dag: dict[str, Any], given: dict[tuple[str, str], tuple[str, str]]) -> dict[tuple[str, str], tuple[str, str]]:
        """`given` and the result: (kind, name) of an input or output of the group -> (step, name of its output)."""
        made: dict[tuple[str, str], tuple[str, str]] = {}
        todo = dict(dag["tasks"])
        while todo:
            name = next(n for n, task in todo.items() if not set(task.get("dependentTasks", [])) & set(todo))
            task = todo.pop(name)
            component = task["componentRef"]["name"].removeprefix("comp-")
            taken: dict[tuple[str, str], tuple[str, str]] = {}
            for kind, key in (("artifacts", "Artifact"), ("parameters", "Parameter")):
                for target, source in task.get("inputs", {}).get(kind, {}).items():
                    inner = source.get(f"taskOutput{key}")
                    origin = (kind, f"{inner['producerTask']}/{inner[f'output{key}Key']}") if inner else None
                    outer = source.get(f"componentInput{key}")
                    found = made.get(origin) if origin else given.get((kind, outer)) if isinstance(outer, str) else None
                    if found:
                        taken[kind, target] = found
            definition = spec["components"][f"comp-{component}"]
            if "dag" in definition:
                result = visit(definition["dag"], taken)
                made |= {(kind, f"{name}/{output}"): origin for (kind, output), origin in result.items()}
                continue
            step = task["taskInfo"]["name"]
            for kind in ("artifacts", "parameters"):
                for output in definition.get("outputDefinitions", {}).get(kind, {}):
                    made[kind, f"{name}/{output}"] = (step, output)
            if step not in AROUND:
                beside = AROUND | BESIDE.get(step, set())
                graph[step][0].update(origin for (kind, _), (origin, _) in taken.items() if kind == "artifacts" and origin not in beside)
                graph[step][1].update(
                    section
                    for (kind, _), (origin, output) in taken.items()
                    if kind == "parameters" and origin == "find-commit"
                    for section in SECTIONS.get(output, ())
                    if section not in BY_NAME
                )
        outputs = dag.get("outputs", {})
        leaving = {
            ("artifacts", output): made["artifacts", f"{one['producerSubtask']}/{one['outputArtifactKey']}"]
            for output, chosen in outputs.get("artifacts", {}).items()
            for one in chosen["artifactSelectors"]
        }
        for output, chosen in outputs.get("parameters", {}).items():
            one = chosen["valueFromParameter"]
            leaving["parameters", output] = made["parameters", f"{one['producerSubtask']}/{one['outputParameterKey']}"]
        return leaving

    visit(spec["root"]["dag"], {})
    return dict(graph)


def compiled(pipeline: ModuleType, folder: Path) -> dict[str, Any]:
    Compiler().compile(pipeline.build(lambda name, task: task.set_display_name(name)), str(folder / "pipeline.yaml"))
    spec: dict[str, Any] = next(yaml.safe_load_all((folder / "pipeline.yaml").read_text()))
    return spec


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compiled(pretrain, tmp_path_factory.mktemp("compiled"))


def test_kfp_and_dvc_have_the_same_graph(spec: dict[str, Any], tmp_path: Path) -> None:
    assert graph_of_kfp(spec) == graph_of_dvc((PROJECT / "dvc.yaml").read_text(), tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  publish:\n", "  deploy:\n"),  # a stage
        ("    deps: [artifacts/onnx, artifacts/evaluation]\n", "    deps: [artifacts/onnx]\n"),  # an edge
        ("      params: [preset, seed, taps, student, distill, ", "      params: [preset, seed, student, distill, "),  # a setting
        ("    params: [export, ", "    params: [export, publish, "),
    ],
)
def test_a_change_of_dvc_yaml_alone_is_noticed(spec: dict[str, Any], tmp_path: Path, old: str, new: str) -> None:
    text = (PROJECT / "dvc.yaml").read_text()
    assert text.count(old) == 1
    assert graph_of_kfp(spec) != graph_of_dvc(text.replace(old, new), tmp_path)


@pytest.mark.parametrize("lost", [("artifacts", "evaluation"), ("parameters", "settings")])
def test_a_change_of_the_pipeline_alone_is_noticed(spec: dict[str, Any], tmp_path: Path, lost: tuple[str, str]) -> None:
    broken = yaml.safe_load(yaml.safe_dump(spec))
    (dag,) = [c["dag"] for c in broken["components"].values() if "publish" in c.get("dag", {}).get("tasks", {})]
    del dag["tasks"]["publish"]["inputs"][lost[0]][lost[1]]
    assert graph_of_kfp(broken) != graph_of_dvc((PROJECT / "dvc.yaml").read_text(), tmp_path)


def test_a_retraining_publishes_nothing_before_the_gates_have_judged(tmp_path: Path) -> None:
    """Also if `gate` fails: then nothing that depends on its group starts."""
    components = compiled(retrain, tmp_path)["components"]
    (publishing,) = (one["dag"]["tasks"]["publish"] for one in components.values() if "publish" in one.get("dag", {}).get("tasks", {}))
    assert "gate" in components["comp-train"]["dag"]["tasks"] and "train" in publishing["dependentTasks"]
