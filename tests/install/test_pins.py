"""constraints.txt is all that `make demo` and `make test` install, so that pip has nothing to resolve."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import distributions
from types import ModuleType

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers import PROJECT

INSTALLED = {canonicalize_name(each.metadata["Name"]): each for each in distributions()}


@cache
def needs(name: str) -> list[str]:
    return INSTALLED[name].requires or []


@pytest.fixture(scope="module")
def pins() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pins", PROJECT / "scripts/pins.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_section_is_closed_under_what_its_packages_need(pins: ModuleType) -> None:
    """On Python 3.11 and 3.12, on every kind of machine: no package is missing, and none is there without a reason."""
    listed = {
        section: {canonicalize_name(Requirement(line).name): line.partition(";")[2].strip() for line in lines}
        for section, lines in pins.read().items()
    }
    assert [canonicalize_name(name) for name in listed.pop("triton")] == ["nvidia-pytriton"]
    needed = pins.sections_of(needs)
    assert listed == {section: {name: mark.removeprefix("; ") for name, mark in each.items()} for section, each in needed.items()}
    for marker in {marker for each in listed.values() for marker in each.values()} - {""}:
        Marker(marker)


def test_the_tests_run_on_the_listed_versions(pins: ModuleType) -> None:
    for requirement in (Requirement(line) for lines in pins.read().values() for line in lines):
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(INSTALLED[canonicalize_name(requirement.name)].version), requirement


def test_listed_versions_are_those_that_the_project_asks_for(pins: ModuleType) -> None:
    versions = {
        canonicalize_name(Requirement(line).name): next(iter(Requirement(line).specifier)).version
        for lines in pins.read().values()
        for line in lines
    }
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for wanted in map(Requirement, [*project["dependencies"], *extras["pipelines"], *extras["test"]]):
        if wanted.name != project["name"]:
            assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), wanted


def test_a_torch_for_cpus_gets_no_cuda_libraries(pins: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["pins.py", "cuda"])
    for needs, expected in ((["filelock", "sympy"], False), (["filelock", 'nvidia-nvtx; platform_system == "Linux"'], True)):
        monkeypatch.setattr(pins, "requires", lambda _, needs=needs: needs)
        pins.main()
        assert ("nvidia-nvtx" in capsys.readouterr().out) == expected


def test_a_section_is_printed_by_a_python_without_any_package() -> None:
    """As `make demo` and the image start: nothing is installed yet."""
    command = [sys.executable, "-I", "-S", str(PROJECT / "scripts/pins.py"), "runtime"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==[^ ]+", line) for line in lines)
    assert "torch" in {line.partition("==")[0] for line in lines}
    wrong = subprocess.run([*command[:-1], "runtim"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (
        1,
        "constraints.txt has no section 'runtim'; it has runtime, cuda, pipelines, test, triton\n",
    )
