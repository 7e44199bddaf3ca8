import shutil
import sys
from pathlib import Path

import pytest
from pipeline import STAND_IN, Project

from helpers import PROJECT


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    (folder / "dreamteacher").write_text(STAND_IN.format(python=sys.executable))
    (folder / "dreamteacher").chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> Project:
    """Reproduced once and committed; tests leave it clean by `git stash` or commit."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(PROJECT / name, folder / name)
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(PROJECT / ".dvc" / name, folder / ".dvc" / name)
    (folder / "samples/nuclei").mkdir(parents=True)
    (folder / "samples/nuclei/a.png").write_bytes(b"picture")
    found = Project(folder, tools)
    settings = folder / "params.yaml"
    settings.write_text(settings.read_text().replace("seeds: [0, 1, 2]", "seeds: [0]"))
    (folder / ".gitignore").open("a").write("ran.log\n")
    for command in ("init -q", "config user.email a@b.c", "config user.name a", "config commit.gpgsign false"):
        found.run("git", *command.split())
    found.first = found.repro()
    found.run("git", "add", "-A")
    found.run("git", "commit", "-qm", "first")
    return found
