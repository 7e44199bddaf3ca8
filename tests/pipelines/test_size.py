"""A run of as many passes as are allowed fits into what Argo keeps of a run."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from argo_nodes import LIMIT
from kfp.compiler import Compiler
from kfp_cache import Kfp
from test_cache import COMPUTED

from components import IMAGE
from dreamteacher.errors import UserError
from dreamteacher.stages.find_commit import resolve
from helpers import PROJECT
from pipelines.__main__ import main
from pipelines.resources import Profile

# An earlier pipeline had 145 nodes, 1.5 MB, 197 kB compressed on a cluster (KFP 2.17.0, 2026-11), and 137, 1.29 and 152 in the model.
REAL = 197 / 152
SPEC = 200_000  # bytes of the Workflow beside its nodes; 170 kB on that cluster


def arguments(seeds: int, *settings: str) -> dict[str, Any]:
    return {"git_url": str(PROJECT), "data_rev": "", "settings": [f"compare.seeds={list(range(seeds))}", *settings]}


def many(kind: str, *, teachers: int = 1, recipes: int = 1, labels: int = 0) -> list[str]:
    """Settings of a comparison with so many of each."""
    settings = [f"teachers.t{n}={{kind: pixels, pretrained: null}}" for n in range(teachers)]
    settings += [f"recipes.r{n}={{teacher: t{n % teachers}, distill: {{T: {n + 1}}}}}" for n in range(recipes)]
    settings += [f"label_recipes.l{n}={{features: r0, labels: {{tau: {n + 1}}}}}" for n in range(labels)]
    inits = [*(["scratch"] if kind == "pretrain" else []), *(f"r{n}" for n in range(recipes)), *(f"l{n}" for n in range(labels))]
    return [*settings, f"compare.inits=[{', '.join(inits)}]", "export.init=r0"]


@pytest.mark.parametrize(
    ("kind", "counts", "seeds"),
    [
        ("pretrain", {"labels": 2}, 9),
        ("pretrain", {"labels": 7}, 3),
        ("pretrain", {"teachers": 4, "recipes": 8, "labels": 2}, 3),
        ("pretrain", {"teachers": 12, "recipes": 12, "labels": 1}, 1),
        ("retrain", {"labels": 2}, 10),
    ],
)
def test_the_largest_run_fits_and_not_by_far(kind: str, counts: dict[str, int], seeds: int, packages: dict[str, Any]) -> None:
    kfp = Kfp(COMPUTED)
    kfp.run(packages[kind], arguments(seeds, *many(kind, **counts)))
    size = kfp.nodes.size()[1] * REAL + SPEC
    assert 0.75 * LIMIT < size < LIMIT, f"{len(kfp.nodes)} nodes, {size / LIMIT}"


@pytest.mark.parametrize("kind", ["pretrain", "retrain"])
@pytest.mark.parametrize("inits", ["r0", "l0"])
def test_kfp_can_resolve_the_inputs_of_a_run_with_one_kind_of_recipe_and_several_seeds(
    kind: str, inits: str, packages: dict[str, Any]
) -> None:
    """A loop without items, and lists of several artifacts, only get where the driver of KFP 2.17 can follow (kfp_cache.py says where)."""
    settings = many(kind, labels=0 if inits == "r0" else 1)
    compared = f"compare.inits=[{'scratch, ' if kind == 'pretrain' else ''}{inits}]"
    export = ["label_recipes={}"] if inits == "r0" else ["export.init=l0"]
    started = Kfp(COMPUTED).run(packages[kind], arguments(2, *settings, *export, compared))
    assert started.count(f"finetune {inits}") == 2
    assert {"evaluate", "export-onnx", "publish", "report", "finish"} <= set(started)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each compiled pipeline, with what its steps have in the cluster."""
    made = {}
    for name in ("pretrain", "retrain"):
        file = tmp_path_factory.mktemp("compiled") / "package.yaml"
        Compiler().compile(import_module(f"pipelines.{name}").build(Profile("single-gpu", IMAGE).apply), str(file))
        made[name], platform = yaml.load_all(file.read_text(), yaml.CSafeLoader)
        made[name]["platforms"] = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return made


@pytest.mark.parametrize("counts", [{"labels": 9}, {"teachers": 9, "recipes": 17, "labels": 1}])
def test_a_run_that_would_not_fit_is_refused(counts: dict[str, int]) -> None:
    given = arguments(3, *many("pretrain", **counts))
    with pytest.raises(UserError, match="more than the 650 that it has for one run; use fewer"):
        resolve(git_url=given["git_url"], data_rev="", overrides=given["settings"], pipeline="pretrain")


def test_compile_refuses_it_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(f"compare: {{seeds: {list(range(18))}, inits: [scratch, features, mix]}}\n")
    assert main(["compile"]) == 2
    assert (
        "compare: 18 seeds of 3 initialisations are 1 teachers, 1 recipes, 18 label distillations, 36 fine-tunings, of which Argo would "
        "keep 745 kB" in capsys.readouterr().err
    )
    assert not (tmp_path / "pretrain.yaml").exists()
