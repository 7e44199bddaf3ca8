"""Allowed imports between packages."""

import ast
import re
import subprocess
import sys

import pytest

from helpers import PROJECT

SOURCE = PROJECT / "src/dreamteacher"
BASE = {"errors", "settings"}
ROOMS = {  # package or module -> our packages that it may import
    "errors": set(),
    "files": set(),
    "limits": set(),
    "locks": set(),
    "settings": {"errors", "files", "project_root"},
    "onnx_files": {"errors"},
    "integrity": {"files"},
    "project_root": {"errors"},
    "mlflow_server": {"errors", "files", "outages", "project_root"},
    "tracking": {"errors", "files", "git_access", "graph", "locks", "mlflow_server", "outages", "project_root"},
    "results": {"errors", "files"},
    "steps": {"errors", "files"},
    "clock": {"files", "project_root", "steps"},
    "outages": {"errors"},
    "folders": {"errors", "files", "locks"},
    "stage": {"clock", "errors", "files", "folders", "graph", "integrity", "mlflow_server", "results", "steps", "tracking"},
    "data": {*BASE, "files"},
    "training": {*BASE, "files", "limits", "tracking"},
    "plugins": {"errors"},
    "teachers": {*BASE, "files", "plugins", "stage", "training"},  # stage: the digest of a folder
    "students": BASE,
    "assessment": {*BASE, "data", "files", "project", "report", "stage", "students", "tasks", "tracking", "training"},
    "report": {*BASE, "clock", "data", "graph", "stage"},
    "distillation": {*BASE, "plugins", "data", "report", "stage", "training", "teachers", "students", "tasks"},
    "methods": {*BASE, "data", "plugins", "training", "teachers", "students", "distillation", "tasks"},
    "tasks": {*BASE, "data", "plugins", "training", "students", "report", "stage"},
    "serving": {*BASE, "lifecycle", "onnx_files",
               "data", "files", "kubernetes_api", "mlflow_server", "outages", "tracking", "stage", "students", "tasks"},
    "git_access": {"errors", "mlflow_server"},
    "places": {"errors", "stage"},
    "versioning": {"errors", "git_access", "mlflow_server", "outages", "places"},
    "kubernetes_api": {"errors"},
    "stages": {*BASE, "assessment", "project", "git_access", "files", "outages", "places", "stage", "steps", "tracking", "versioning",
               "data", "training", "teachers", "students", "distillation", "methods", "tasks", "serving", "lifecycle", "onnx_files",
               "report"},
    "cluster": {*BASE, "graph", "kubernetes_api", "results", "stage", "stages", "tracking"},
    "lifecycle": {"errors", "mlflow_server", "onnx_files", "outages", "stage", "tracking"},
    "project": {*BASE, "limits", "files", "data", "training", "teachers", "students", "distillation", "methods", "tasks"},
    "doctor": {*BASE, "git_access", "limits", "mlflow_server", "tracking", "training", "serving"},
    "repro": {"errors", "forks", "graph", "limits", "locks", "tracking"},
    "forks": {"graph"},
    "graph": set(),
    "stage_commands": {*BASE, "graph", "stages"},
    "cli": {*BASE, "project_root",
            "stage_commands", "lifecycle", "graph", "teachers", "stages", "tracking", "serving", "doctor", "project", "repro"},
    "": {"tasks"},
}  # fmt: skip


def imports() -> list[tuple[str, str, str]]:
    """(file, its package, imported package) of every import of ours."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        inside = path.relative_to(SOURCE)
        room = inside.parts[0].removesuffix(".py").replace("__init__", "")
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{inside}: relative import"
                names = [f"{node.module}.{alias.name}" if node.module == "dreamteacher" else node.module or "" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.startswith("dreamteacher."):
                    found.append((str(inside), room, name.split(".")[1]))
    return found


def test_arrows_point_down_only():
    wrong = [(file, target) for file, room, target in imports() if target != room and target not in ROOMS[room]]
    assert wrong == []


def test_the_rule_itself_has_no_circle():
    below: dict[str, set[str]] = {}
    todo = {room: targets - {room} for room, targets in ROOMS.items()}
    while todo:
        ready = [room for room, targets in todo.items() if targets <= set(below)]
        assert ready, f"circle among {sorted(todo)}"
        for room in ready:
            below[room] = todo.pop(room)


def test_every_room_is_one_of_the_plan():
    found = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")} - {"__init__"}
    assert found == set(ROOMS) - {""}


def test_teachers_students_and_data_know_nothing_of_each_other():
    trio = {"teachers", "students", "data"}
    for room in trio:
        assert not (trio - {room}) & ROOMS[room]
    assert [(file, target) for file, room, target in imports() if {room, target} <= trio and room != target] == []


@pytest.mark.parametrize(
    "module",
    ["cli", "settings.schema", "settings.file", "errors", "stage", "mlflow_server", "tracking", "doctor", "versioning",
     "cluster.trainjob", "kubernetes_api", "cluster.node_watch", "outages"],
)  # fmt: skip
def test_light_modules_import_nothing_heavy(module):
    body = f"import sys, dreamteacher.{module}; print([m for m in ('torch', 'numpy', 'mlflow', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_tensors_are_never_unpickled():
    """`torch.load` only with weights_only=True, and no pickle, joblib or numpy objects."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("weights_only") == "True", path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {f"{name}.load{s}" for name in ("pickle", "joblib", "dill") for s in ("", "s")}, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", path


def test_pickles_of_others_are_read_by_a_table_of_names_alone():
    """One class does it; it looks each name up and never asks pickle's own `find_class`, which would import it."""
    readers = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("Unpickler", "_Unpickler"):
                readers.append(path.relative_to(SOURCE).as_posix())
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr != "find_class", path
    assert readers == ["teachers/unpickling.py"]


def test_tests_share_code_by_modules_of_their_own_names():
    """Any mix of folders can then be collected in one call: every folder has a conftest, and only one is `conftest` to an import."""
    files = [path for path in (PROJECT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len({path.name for path in files}) == len(files)
    assert [path for path in files if re.search(r"^(from|import) conftest", path.read_text(), re.M)] == []
