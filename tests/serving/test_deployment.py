"""`deploy` and `status`, on what a real Kubernetes 1.34 answered in each state (deployments.json; tests/cluster runs them on one)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_cluster import NAME, Cluster, annotations, running_cluster

from dreamteacher import cli
from dreamteacher.errors import UserError
from dreamteacher.serving import deployment
from dreamteacher.serving.deployment import MODEL, VERSION, deploy, follow, status


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(deployment, "resolve", lambda name, alias: {"champion": "2", "challenger": "3"}[alias])
    monkeypatch.setattr(deployment, "has_repository", lambda name, version: version != "9")
    with running_cluster(request.param, tmp_path, monkeypatch) as found:
        yield found


def state(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cluster", [name], indirect=True)


@state("done")
def test_deploy_follows_the_alias_unless_a_version_was_named_by_hand(cluster: Cluster):
    assert deploy(NAME, version="1") == f"{NAME}: version 1 of cells is being rolled out"
    assert annotations(cluster) == ("cells=1", "cells=1")
    assert deploy(NAME, follow=True) == f"{NAME}: version 1 of cells was named by hand; `dreamteacher deploy` follows the alias again"
    assert annotations(cluster) == ("cells=1", "cells=1")
    assert deploy(NAME, wait=True) == f"{NAME}: version 2 of cells is served"
    assert annotations(cluster) == ("cells=2", None)
    patches = cluster.patches
    assert deploy(NAME, follow=True) == f"{NAME}: version 2 of cells is served already"
    assert cluster.patches == patches


@state("done")
def test_one_triton_serves_several_models_each_at_its_own_version(cluster: Cluster, capsys: pytest.CaptureFixture[str]):
    cluster.deployment["spec"]["template"]["metadata"]["annotations"] |= {MODEL: "cells,roads", VERSION: "2"}  # from when it served cells
    assert deploy(NAME, follow=True) == f"{NAME}: version 2 of cells is being rolled out, version 2 of roads is being rolled out"
    assert annotations(cluster) == ("cells=2,roads=2", None)
    with pytest.raises(UserError, match=f"{NAME} serves cells, roads; name one of them by --model"):
        deploy(NAME, version="1")
    with pytest.raises(UserError, match=f"{NAME} serves cells, roads; name one of them by --model"):
        deploy(NAME, model="faces")
    assert deploy(NAME, version="1", model="roads") == f"{NAME}: version 1 of roads is being rolled out"
    assert annotations(cluster) == ("cells=2,roads=1", "roads=1")
    by_hand = "version 1 of roads was named by hand; `dreamteacher deploy` follows the alias again"
    assert deploy(NAME, follow=True) == f"{NAME}: version 2 of cells is served already, {by_hand}"
    assert follow("roads", "champion") == [f"{NAME}: {by_hand}"]
    assert follow("cells", "challenger") == []
    assert annotations(cluster) == ("cells=2,roads=1", "roads=1")
    first, second = status("ml")
    assert first.startswith(f"{NAME}: version 2 of cells, version 1 of roads, 2 of 2 replicas ready")
    assert second == f"  champion of roads is version 2 now; a version was named by hand: `dreamteacher deploy --deployment {NAME}`"
    assert cli.main(["deploy", "-n", "ml", "--model", "roads"]) == 0
    assert capsys.readouterr().out == f"{NAME}: version 2 of roads is being rolled out\n"
    assert annotations(cluster) == ("cells=2,roads=2", None)


@state("done")
def test_a_list_of_models_that_grows_or_is_sorted_anew_leaves_each_its_version_and_what_was_named(cluster: Cluster):
    deploy(NAME, version="1")
    pods = cluster.deployment["spec"]["template"]["metadata"]["annotations"]
    pods[MODEL] = "roads,cells"  # as `kubectl apply` of an overlay with one model more
    by_hand = "version 1 of cells was named by hand; `dreamteacher deploy` follows the alias again"
    assert status("ml")[0].startswith(f"{NAME}: the champion of roads, version 1 of cells")
    assert follow("cells", "champion") == [f"{NAME}: {by_hand}"]
    assert annotations(cluster) == ("roads=2,cells=1", "cells=1")  # a version for the new one, so that all replicas serve the same
    assert deploy(NAME, follow=True) == f"{NAME}: version 2 of roads is served already, {by_hand}"
    pods[MODEL] = "roads"
    patches = cluster.patches
    assert deploy(NAME) == f"{NAME}: version 2 of roads is served already"
    assert cluster.patches == patches


@state("done")
def test_what_cannot_be_deployed_changes_nothing(cluster: Cluster, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(
        UserError, match=r"repository of version 9 of cells is not stored; .*`dreamteacher promote cells --version 9` stores it"
    ):
        deploy(NAME, version="9")
    assert cli.main(["deploy", "--deployment", "other", "-n", "ml"]) == 2
    assert "error: namespace ml has no Deployment other; `kubectl apply -k k8s/serving` makes it" in capsys.readouterr().err
    assert cluster.patches == 0


@pytest.mark.parametrize(
    ("cluster", "why"),
    [
        ("broken", r"pod \S+-v98fv: error: what MLflow stores with version 3 of cells is damaged: .*model.onnx is damaged"),
        ("image", r"pod \S+-fhvwg: ImagePullBackOff: Back-off pulling image \"localhost/nowhere:1\""),
    ],
    indirect=["cluster"],
)
def test_a_version_that_cannot_start_is_said_in_its_own_words(cluster: Cluster, why: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match=f"{NAME} cannot serve the new version, and serves the one before it: {why}"):
        deploy(NAME, version="3", wait=True)
    assert cli.main(["status", "-n", "ml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{NAME}: version 3 of cells is being rolled out, 1 of 2 replicas have it, 2 ready"
    assert lines[1] == f"  champion is version 2 now; a version was named by hand: `dreamteacher deploy --deployment {NAME}`"
    assert lines[2].startswith("  pod ")


@state("done")
def test_status_says_version_replicas_and_since_when(cluster: Cluster):
    (line,) = status("ml")
    assert line.startswith(f"{NAME}: version 2 of cells, 2 of 2 replicas ready, since 2026-11-27 01:22 (")


def test_without_the_client_of_kubernetes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    assert cli.main(["status"]) == 2
    assert capsys.readouterr().err == "error: the Kubernetes client is not installed; run pip install 'dreamteacher[pipelines]'\n"
