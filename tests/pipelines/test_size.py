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
from test_cache import find_commit

from components import IMAGE
from dreamteacher.errors import UserError
from dreamteacher.stages.find_commit import PASSES, resolve
from helpers import PROJECT
from pipelines.__main__ import main
from pipelines.resources import Profile

# An earlier pipeline had 145 nodes, 1.5 MB, 197 kB compressed on a cluster (KFP 2.17.0, 2026-11), and 137, 1.29 and 152 in the model.
REAL = 197 / 152
SPEC = 200_000  # bytes of the Workflow beside its nodes; 170 kB on that cluster


def arguments(seeds: int, inits: str) -> dict[str, Any]:
    settings = [f"compare.seeds={list(range(seeds))}", f"compare.inits=[{inits}]", "label_recipes.labels={features: features}"]
    return {"git_url": str(PROJECT), "data_rev": "", "settings": settings}


@pytest.mark.parametrize(
    ("name", "inits"),
    [("pretrain", "scratch, features, labels, mix"), ("retrain", "features, labels, mix")],
)
def test_the_largest_run_fits_and_not_by_far(name: str, inits: str, tmp_path: Path) -> None:
    file = tmp_path / "package.yaml"
    Compiler().compile(import_module(f"pipelines.{name}").build(Profile("single-gpu", IMAGE).apply), str(file))
    spec, platform = yaml.safe_load_all(file.read_text())
    spec["platforms"] = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    kfp = Kfp(find_commit)
    kfp.run(spec, arguments(PASSES // len(inits.split(",")), inits))
    size = kfp.nodes.size()[1] * REAL + SPEC
    assert 0.7 * LIMIT < size < LIMIT, f"{len(kfp.nodes)} nodes, {kfp.nodes.size()} bytes"


def test_a_run_that_would_not_fit_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    given = arguments(14, "scratch, features, mix")
    words = f"14 seeds of 3 initialisations are 42 passes of the pipeline's loops, more than the {PASSES} that Argo can keep of one run"
    with pytest.raises(UserError, match=words):
        resolve(git_url=given["git_url"], data_rev="", overrides=given["settings"], pipeline="pretrain")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(f"compare: {{seeds: {list(range(14))}, inits: [scratch, features, mix]}}\n")
    assert main(["compile"]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "pretrain.yaml").exists()
