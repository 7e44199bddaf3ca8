import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import stand_in
from pipeline import Project

from helpers import NUCLEI, PROJECT, free_port, wait_for


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    (folder / "dreamteacher").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in.__file__}" "$@"\n')
    (folder / "dreamteacher").chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> Project:
    """Reproduced once and committed; tests that change it take `clean` or commit."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(PROJECT / name, folder / name)
    shutil.copy(NUCLEI, folder / "params.yaml")
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


@pytest.fixture
def clean(project: Project) -> Iterator[Project]:
    """The project, which is brought back to its committed state after the test: settings, lock and artifacts."""
    yield project
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout", "-q")


@pytest.fixture(scope="session")
def origin(project: Project, s3: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A user's checkout of the project, pushed: a DVC remote, a data set in git (samples/nuclei) and one in DVC (pool/big)."""
    folder = tmp_path_factory.mktemp("origin")
    bare = folder / "bare.git"
    project.run("git", "clone", "-q", "--bare", str(project.folder), str(bare))
    user = Project(folder / "user", Path(project.environment["PATH"].split(":")[0]))
    project.run("git", "clone", "-q", str(bare), str(user.folder))
    (user.folder / "pool/big").mkdir(parents=True)
    (user.folder / "pool/big/b.png").write_bytes(b"big picture")
    for kind in ("images", "masks"):
        (user.folder / "data" / kind).mkdir(parents=True)
        (user.folder / "data" / kind / "a.png").write_bytes(kind.encode())
    (user.folder / "data/labels.csv").write_text("path,label\n")
    (user.folder / "data/list.txt").write_text("images/a.png\n../pool/big/b.png\n")
    for command in (
        "git config user.email a@b.c", "git config user.name a", "git config commit.gpgsign false",
        "dvc remote add -q --force -d storage s3://models/versions", f"dvc remote modify -q storage endpointurl {s3}",
        "dvc add -q pool/big data/images data/masks", "dvc push -q pool/big data/images data/masks", "git add -A", "git commit -qm data",
        "git tag -a -m v1 v1", "git push -q --tags origin HEAD",
    ):  # fmt: skip
        user.run(*command.split())
    return user


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, log = free_port(), tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as file:
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/moto-api/", server, log)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}.items():
                patch.setenv(name, value)
            boto3.client("s3", endpoint_url=url).create_bucket(Bucket="models")
            yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder outside the project, such as that of a pod's service account."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/token.png").write_bytes(b"s3cret")
    (tmp_path / "project/data").mkdir(parents=True)
    (tmp_path / "project/data/a.png").write_bytes(b"a")
    return tmp_path / "secret"
