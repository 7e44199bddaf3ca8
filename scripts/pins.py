"""constraints.txt: the exact versions of all packages, in sections, so that pip resolves nothing.

    python scripts/pins.py SECTION...    print sections, for `pip install --no-deps --requirement`
    python scripts/pins.py --write       write the file from the packages of this environment (`make pins` makes a fresh one)

Each section adds to those before it: `runtime` has the dependencies of dreamteacher, `cuda` those of a torch built for CUDA, `pipelines`
and `test` those of the extras, `triton` the server. `cuda` prints nothing if the installed torch is built for CPUs, so that no CUDA
libraries are installed.
"""

import sys
import tomllib
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import distributions, requires
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
FILE = PROJECT / "constraints.txt"
HEADER = "# The exact versions of all packages; written by `make pins`, read by scripts/pins.py. `pip install -c` takes the file as well.\n"
CUDA = ("nvidia-", "cuda-", "triton")  # prefixes of torch's CUDA packages
PYTHONS = ("3.11", "3.12")
MACHINES = [("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64")]

Environment = dict[str, str]


def read() -> dict[str, list[str]]:
    """{section: its lines, such as `numpy==2.4.6`}."""
    sections: dict[str, list[str]] = {}
    for line in FILE.read_text().splitlines():
        if line.startswith("## "):
            sections[line[3:].split(":")[0]] = []
        elif line and line[0] != "#":
            sections[list(sections)[-1]].append(line)
    return sections


def environments() -> list[Environment]:
    """PEP 508 environments of all supported Pythons and platforms."""
    return [
        {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": name, "platform_system": system,
         "platform_machine": machine, "os_name": "posix", "implementation_name": "cpython", "platform_python_implementation": "CPython"}
        for python in PYTHONS
        for name, system, machine in MACHINES
    ]  # fmt: skip


def closure(roots: Iterable[str], needs: Callable[[str], list[str]], environment: Environment, *, cuda: bool) -> set[str]:
    """Normalized names of `roots` and all their dependencies.

    Args:
        roots: requirements, as in pyproject.toml.
        needs: normalized name of a package -> its requirements.
        environment: one of `environments()`.
        cuda: include torch's CUDA packages.
    """
    from packaging.utils import canonicalize_name

    seen: set[tuple[str, str]] = set()
    todo = [_requirement(root) for root in roots]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in ["", *requirement.extras]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for each in map(_requirement, needs(name)):
                if name == "torch" and not cuda and each.name.startswith(CUDA):
                    continue
                if each.marker is None or each.marker.evaluate({**environment, "extra": extra}):
                    todo.append(each)
    return {name for name, _ in seen}


@cache
def _requirement(text: str) -> Any:
    from packaging.requirements import Requirement  # not installed yet when sections are only printed

    return Requirement(text)


def sections_of(needs: Callable[[str], list[str]]) -> dict[str, dict[str, str]]:
    """{section: {package: marker or ""}} of the dependencies in pyproject.toml. needs: see `closure`."""
    wanted_by_us = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    project, build = wanted_by_us["project"], wanted_by_us["build-system"]["requires"]
    extras = project["optional-dependencies"]
    roots = {"runtime": [*project["dependencies"], *build]}
    roots["cuda"] = roots["runtime"]
    roots["pipelines"] = [*roots["runtime"], *extras["pipelines"]]
    roots["test"] = [*roots["pipelines"], *extras["heic"], *(each for each in extras["test"] if not each.startswith(project["name"]))]
    found: dict[str, dict[str, str]] = {}
    for section, wanted in roots.items():
        places: dict[str, list[Environment]] = {}
        for environment in environments():
            for name in closure(wanted, needs, environment, cuda=section != "runtime"):
                places.setdefault(name, []).append(environment)
        before = {name for names in found.values() for name in names}
        found[section] = {name: _marker(places[name]) for name in sorted(set(places) - before)}
    return found


def _marker(places: list[Environment]) -> str:
    """The PEP 508 marker that selects `places`; "" for all environments."""
    conditions = []
    for name in ("python_version", "sys_platform", "platform_machine"):
        values = {place[name] for place in places}
        if values < {environment[name] for environment in environments()} and len(values) == 1:
            conditions.append(f'{name} == "{values.pop()}"')
    return "; " + " and ".join(conditions) if conditions else ""


def main() -> None:
    """Command line, see the module."""
    if sys.argv[1:] == ["--write"]:
        write()
        return
    sections = read()
    for section in sys.argv[1:]:
        if section not in sections:
            sys.exit(f"{FILE.name} has no section {section!r}; it has {', '.join(sections)}")
        if section != "cuda" or "nvidia-" in " ".join(requires("torch") or []):
            print(*sections[section], sep="\n")


def write() -> None:
    """Write constraints.txt from the installed versions."""
    from packaging.utils import canonicalize_name

    installed = {canonicalize_name(each.metadata["Name"]): each for each in distributions()}
    triton = read()["triton"]

    def needs(name: str) -> list[str]:
        if name not in installed:
            sys.exit(f"{name} is needed on another Python or machine, and is not installed here; `pip install {name}` and start again")
        return installed[name].requires or []

    text = HEADER
    for section, packages in sections_of(needs).items():
        lines = (f"{name}=={installed[name].version}{marker}" for name, marker in packages.items())
        text += "\n".join(["", f"## {section}", *lines, ""])
    FILE.write_text("\n".join([text, "## triton: it declares numpy<2 and more for a Python API that is not used", *triton, ""]))


if __name__ == "__main__":
    main()
