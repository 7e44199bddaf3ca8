"""Versions of a registered model, with aliases and lineage."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from dreamteacher.lifecycle.promotion import LINEAGE, fetch_champion, keep_lineage
from dreamteacher.stage import open_stage

only_database = pytest.mark.parametrize("registry", ["database"], indirect=True)


def add_versions(registry: MlflowClient, name: str, count: int) -> None:
    registry.create_registered_model(name)
    for number in range(1, count + 1):
        run = registry.create_run("0")
        tags = {"sha256": f"{number}" * 8, "evaluation": "e" * 64, "init": "mix"}
        registry.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id, tags=tags)


def aliases(registry: MlflowClient, name: str) -> dict[str, int]:
    return {alias: int(version) for alias, version in registry.get_registered_model(name).aliases.items()}


def make_lineage(folder: Path, name: str, *versions: str) -> None:
    """Store a small lineage with each of `versions`; the manifest contains the version."""
    for version in versions:
        parts = {part: folder / version / part for part in LINEAGE}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DREAMTEACHER_TRACKING", "off")
            with open_stage("ingest", params={"version": version}, inputs={}, out=parts["data"]) as stage:
                (stage.tmp / "manifest.csv").write_text(f"name\npicture of {version}\n")
                (stage.tmp / "train-0.tar").write_bytes(b"what is not stored with the version")
        for part in LINEAGE[1:]:
            parts[part].mkdir(parents=True)
            (parts[part] / "file").write_text(version)
        (parts["evaluation"] / "metrics.json").write_text(json.dumps({"mix": {"miou_mean": 0.8}}))
        keep_lineage(name, version, parts, digest="e" * 64)


def known(name: str, out: Path) -> str:
    """The version whose pictures a retraining that begins now would not count as new."""
    fetch_champion(name, out)
    return (out / "known/manifest.csv").read_text().split()[-1]
