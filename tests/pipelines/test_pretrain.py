"""The whole pretrain pipeline by KFP's local runner, against the stages as `dvc repro` runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from local_runs import LocalRun, run_local

from dreamteacher import cli
from helpers import PROJECT
from pipelines.__main__ import main
from pipelines.local import run_local as run_in_this_process

INITS = ["scratch", "features", "mix", "control", "simclr"]
CHAIN = (
    "ingest",
    *(f"train-teacher --name {name}" for name in ("teacher", "control")),
    *(f"distill-features --recipe {name}" for name in ("features", "quiet", "control", "simclr")),
    "train-interpreter --recipe mix --seed 0",
    "distill-labels --recipe mix --seed 0",
    *(f"finetune --init {init} --seed 0" for init in INITS),
    "evaluate",
    "export-onnx",
    "publish",
    "report",
)


@pytest.fixture(scope="module")
def by_hand(several: Path) -> Path:
    """The same stages, started by their commands in the order of dvc.yaml."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(several)
        for command in CHAIN:
            assert cli.main(command.split()) == 0, command
    return several / "artifacts"


def test_the_pipeline_makes_what_the_chain_makes_to_the_byte(pretrained: LocalRun, by_hand: Path) -> None:
    """Of all teachers, recipes and models: nothing is missing, and nothing is made that is not compared."""
    assert pretrained.code == 0, pretrained.output[-3000:]
    apart = {"publish", "report"}  # whose outputs hold times
    records = [
        sorted(path.read_bytes() for path in folder.rglob("stage.json") if json.loads(path.read_text())["stage"] not in apart)
        for folder in (pretrained.steps, by_hand)
    ]
    assert len(records[0]) == len(CHAIN) - len(apart)
    assert records[0] == records[1]
    made = json.loads((pretrained.out("evaluate") / "metrics.json").read_text())
    assert list(made) == INITS


def test_every_step_has_metadata_and_a_page(pretrained: LocalRun) -> None:
    pages = {path.parent.name: path.read_text() for path in sorted(pretrained.steps.rglob("page"), reverse=True)}  # the first pass's last
    assert len(pages) == 15
    assert "<th>files</th>" in pages["fetch-data"]
    assert "nothing, as the project is a folder" in pages["record"]
    assert "SUCCEEDED" in pages["finish"]
    assert 0 < pages["train-teacher"].index("data:image/png;base64,") < pages["train-teacher"].index("Settings")
    assert "None" not in pages["ingest"]
    assert "miou" in pages["evaluate"]
    assert "One seed: no interval, no verdict" in pages["report"] and "of computation on cpu" in pages["report"]
    assert "is missing" not in pages["report"]
    assert not [name for name, page in pages.items() if "http" in page.replace("http-equiv", "")]  # self-contained
    assert "'taps'" in pretrained.output
    assert "'backbone': 'test_resnet'" in pretrained.output


def test_the_run_ends_with_finish_and_leaves_nothing_behind(pretrained: LocalRun) -> None:
    assert "SUCCEEDED" in pretrained.output
    assert not list(pretrained.temporary.iterdir())


def test_a_failing_step_leaves_the_others_outputs_and_finish_runs(small_project: Path, tmp_path: Path) -> None:
    run = run_local(small_project, tmp_path / "runs", "--set", "teacher.lr=1.0e+30", "--set", "teacher.clip=null")
    assert run.code == 2
    last = run.output.splitlines()[-1]
    assert last.startswith("error: pretrain: train-teacher teacher: ") and "not finite" in last
    assert "Traceback" not in run.output
    assert (run.out("ingest") / "stage.json").exists()
    assert not list(run.steps.rglob("distill-features/out/stage.json"))
    assert "FAILED" in run.output


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by SIGKILL, most likely because memory is too small"),
        ("from dreamteacher.errors import UserError; raise UserError('no pictures; add some')", "no pictures; add some"),
        ("raise ValueError('a bug')", "ValueError: a bug"),
        (
            "import threading; from dreamteacher.errors import UserError; threading.Timer(1, print, '.').start(); raise UserError('no')",
            "no",
        ),
    ],
)
def test_the_first_failed_step_is_told_with_its_reason(tmp_path: Path, source: str, reason: str) -> None:
    body = f"""
import json
from pipelines import local_step
local_step._FORKS.set_forkserver_preload([])
given = json.dumps({{"inputs": {{"parameterValues": {{"seed": 0, "init": "mix"}}}}}})
for source in ({source!r}, "raise KeyError"):
    assert local_step.run(["", "", "", source, "--executor_input", given, "--function_to_execute", "finetune"])
print(local_step.first_failure())
"""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", body], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"finetune mix 0: {reason}"


def test_a_long_name_of_the_folder_for_temporary_files_is_no_obstacle(tmp_path: Path) -> None:
    """The socket of what steps are forked from may have a path of 107 bytes."""
    (tmp_path / ("long" * 30)).mkdir()
    body = "from pipelines import local_step; local_step._FORKS.set_forkserver_preload([]); local_step.prepare()"
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path / ("long" * 30))}
    done = subprocess.run([sys.executable, "-c", body], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_sample_goes_through_both_pipelines_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    options: dict[str, bool] = {}
    monkeypatch.setattr("pipelines.local.run_local", lambda name, *_, **more: ran.append(name) or options.update(more))
    assert main(["run-local", "--sample", "--project", str(PROJECT), "--parallel"]) == 0
    assert ran == ["pretrain", "retrain"]
    assert options == {"parallel": True}
    assert main(["run-local", "--sample", "--project", str(PROJECT), "--pipeline", "retrain"]) == 0
    assert ran[2:] == ["retrain"]
    assert main(["run-local", "--project", str(PROJECT)]) == 0
    assert ran[3:] == ["pretrain"]


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["--set", "nope.x=1"], "unknown setting 'nope.x'"),
        (["--set", "compare.seeds=[5]"], "export.seed = 0 is not among compare.seeds = [5]"),
        (["--set", "compare.seeds=[0, 0]"], "compare.seeds = [0, 0] lists a value twice"),
        (["--set", "compare.inits=[features, random-teacher]"], "add scratch or imagenet"),
        (["--set", "compare.inits=[scratch]", "--set", "export.init=scratch"], "add a recipe"),
        (
            ["--set", "recipes.team={teacher: ., distill: {method: team}}", "--set", "compare.inits=[scratch, team, features]"],
            "all teachers",
        ),
        (["--set", "ingest.source=nowhere"], "nowhere does not exist; correct ingest.source"),
        (["--root", "/proc/x"], "/proc/x: No such file or directory; it cannot be made there"),
    ],
)
def test_what_no_step_could_do_is_reported_before_any_runs(capfd: pytest.CaptureFixture[str], words: list[str], output: str) -> None:
    assert main(["run-local", "--sample", "--project", str(PROJECT), *words]) == 2
    error = capfd.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert output in error[0]


def test_two_runs_in_one_process_find_the_same_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []
    recorder = SimpleNamespace(build=lambda *_, **__: lambda: seen.append(dict(os.environ)))
    monkeypatch.setattr("pipelines.local.import_module", lambda _: recorder)
    before = dict(os.environ)
    for _ in range(2):
        run_in_this_process("pretrain", tmp_path, {})
        assert dict(os.environ) == before
    first, second = seen
    assert first["PYTHONPATH"] == second["PYTHONPATH"] != before.get("PYTHONPATH")
    assert not Path(first["TMPDIR"]).exists()
    assert first["TMPDIR"] != second["TMPDIR"]
