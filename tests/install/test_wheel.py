"""The wheel as a user has it: in an environment of its own, far from the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from helpers import PROJECT

PACKAGES = ("src/dreamteacher", "components", "pipelines")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools would leave its folders in the checkout, and take what an earlier build left there."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("pyproject.toml", "README.md", "LICENSE", "dvc.yaml", "constraints.txt"):
        shutil.copy(PROJECT / name, copy / name)
    for name in PACKAGES:
        shutil.copytree(PROJECT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(copy / "dist"), str(copy)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    (made,) = (copy / "dist").glob("*.whl")
    return made


class Installed:
    """An environment with the wheel in it, and a folder to work in."""

    def __init__(self, wheel: Path, root: Path):
        """Third-party packages, which are those of constraints.txt, are lent by the tests' environment: its packages, but not its .pth
        files, by which an editable install would be found."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], check=True)
        self.bin, self.work = root / "venv/bin", root / "work"
        self.work.mkdir()
        self.packages = Path(self.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet", "--no-deps", "--no-index"]
        subprocess.run([*pip, str(wheel)], check=True)
        (self.packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, *command: str, cwd: str = ".") -> str:
        environment = os.environ | {"PATH": f"{self.bin}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(command, cwd=self.work / cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("new"))


def test_all_that_runs_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        assert file.read("dreamteacher/project/chain.yaml") == (PROJECT / "dvc.yaml").read_bytes()
        assert file.read("dreamteacher/project/constraints.txt") == (PROJECT / "constraints.txt").read_bytes()
    sources = {path for name in PACKAGES for path in (PROJECT / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {str(path.relative_to(PROJECT)).removeprefix("src/") for path in sources} <= names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"dreamteacher", "components", "pipelines"}


@pytest.mark.timeout(900)  # on a busy machine; alone it takes less than a minute
def test_a_project_starts_without_the_checkout(installed: Installed) -> None:
    """As the README says: init, then what the new project's own README says."""
    where = "import dreamteacher, components, pipelines; print(dreamteacher.__file__, components.__file__, pipelines.__file__)"
    assert all(place.startswith(str(installed.packages)) for place in installed.run("python", "-c", where).split())
    assert "init " in installed.run("dreamteacher", "--help")
    pictures = installed.work / "pictures"
    for folder in ("images/train", "masks/train", "images/val", "masks/val"):
        (pictures / folder).mkdir(parents=True)
        for picture in sorted((PROJECT / "samples/nuclei" / folder).iterdir())[:4]:
            shutil.copy(picture, pictures / folder)
    shutil.copy(PROJECT / "samples/nuclei/classes.txt", pictures)

    output = installed.run("dreamteacher", "init", "mine", "--source", "pictures", "--hours", "0.5")
    assert "task: segmentation, 2 classes: background, nucleus" in output
    assert str(PROJECT) not in output
    assert "ingest: artifacts/data" in installed.run("dreamteacher", "ingest", cwd="mine")
    assert "train-teacher@own:" in installed.run("python", "-m", "dvc", "status", cwd="mine")
    files = [path for path in (installed.work / "mine").rglob("*") if path.is_file()]
    assert not [path for path in files if str(PROJECT).encode() in path.read_bytes()]


def test_the_pipelines_are_reached_by_the_command(installed: Installed) -> None:
    installed.run("env", f"DREAMTEACHER_IMAGE=x@sha256:{'0' * 64}", "dreamteacher", "pipelines", "compile", "--out", "made.yaml")
    compiled = next(yaml.safe_load_all((installed.work / "made.yaml").read_text()))
    assert compiled["pipelineInfo"]["name"] == "dreamteacher-pretrain"
