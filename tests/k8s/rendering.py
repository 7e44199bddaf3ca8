"""Kustomize's output, and what the user makes beside it."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifest_lint.stack import Made

from helpers import PROJECT

KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
MADE: Made = {  # what the comments of the overlays and components ask the user to make, and the account that KFP has
    ("Secret", "dreamteacher-s3"): KEYS,
    ("Secret", "dreamteacher-postgres"): {"POSTGRES_PASSWORD"},
    ("Secret", "dreamteacher-webhook"): {"DREAMTEACHER_WEBHOOK_SECRET"},
    ("ConfigMap", "dreamteacher-sampling"): set(),
    ("ServiceAccount", "pipeline-runner"): set(),
}
needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here")


def kustomize(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def overlay(tmp_path: Path, name: str, *, resources: list[str], components: tuple[str, ...], **more: Any) -> list[dict[str, Any]]:
    """The overlay `name` with other resources and components, as a user's copy beside it."""
    chosen = yaml.safe_load((PROJECT / f"k8s/overlays/{name}/kustomization.yaml").read_text())
    chosen["resources"] = [f"../../{each}" for each in resources]
    chosen["components"] = [f"../../components/{each}" for each in components]
    if not (tmp_path / "k8s").exists():
        shutil.copytree(PROJECT / "k8s", tmp_path / "k8s")
    mine = tmp_path / "k8s/overlays" / "-".join(("mine", *components, str(len(resources))))
    mine.mkdir(exist_ok=True)
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(chosen | more))
    return kustomize(mine)


def powerset(*names: str) -> Iterator[tuple[str, ...]]:
    for size in range(len(names) + 1):
        yield from itertools.combinations(names, size)
