"""`dreamteacher repro`: DVC's own result, with stages side by side."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml
from dvc.repo import Repo
from pipeline import Project
from tiny_chain import brief_params, draw

from dreamteacher import cli
from forked import Forked

REPRO = [sys.executable, "-m", "dreamteacher.cli", "repro"]
TOY = """stages:
  slow:
    matrix: {name: [a, b]}
    cmd: python wait.py ${item.name}
    outs: ["${item.name}.out"]
  end:
    cmd: cat a.out b.out > end.out
    deps: [a.out, b.out]
    outs: [end.out]
  other:
    cmd: echo x > other.out
    deps: [end.out]
    outs: [other.out]
"""
# Each waits until the other has begun: one after the other they would wait in vain.
MEET = """import sys, time
from pathlib import Path
name = sys.argv[1]
Path(f"{name}.begun").touch()
end = time.monotonic() + 60
while not Path(f"{'ba'['ab'.index(name)]}.begun").exists():
    assert time.monotonic() < end
    time.sleep(0.01)
Path(f"{name}.out").write_text(name)
"""


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def toy(tmp_path, tools) -> Project:
    found = Project(tmp_path, tools)
    (tmp_path / "dvc.yaml").write_text(TOY)
    (tmp_path / "wait.py").write_text(MEET)
    found.run("git", "init", "-q")
    found.run("dvc", "init", "-q")
    return found


@pytest.mark.parametrize("remote", [False, True])
def test_independent_stages_run_side_by_side_and_dvc_finds_nothing_left(toy, tmp_path_factory, remote):
    if remote:
        toy.run("dvc", "remote", "add", "-q", "-d", "storage", str(tmp_path_factory.mktemp("remote")))
    output = toy.run(*REPRO, "--jobs", "2")
    assert output.count("dvc push") == remote
    assert (toy.folder / "end.out").read_text() == "ab"
    assert "up to date" in toy.run("dvc", "repro")
    assert "up to date" in toy.run(*REPRO)


def test_stages_share_the_cores_and_one_alone_gets_them_all(toy):
    (toy.folder / "dvc.yaml").write_text(TOY.replace("echo x >", "echo $OMP_NUM_THREADS >"))
    (toy.folder / "wait.py").write_text(
        MEET.replace("write_text(name)", "write_text(__import__('os').environ['OMP_NUM_THREADS'] + chr(10))")
    )
    toy.environment.pop("OMP_NUM_THREADS", None)
    toy.run(*REPRO, "--jobs", "2")
    cores = len(os.sched_getaffinity(0))
    assert (toy.folder / "end.out").read_text().split() == [str(max(1, cores // 2))] * 2
    assert (toy.folder / "other.out").read_text().strip() == str(cores)


def test_only_what_changed_and_what_follows_runs(clean):
    log = clean.folder / "ran.log"
    clean.change("steps: 160", "steps: 170")
    log.unlink(missing_ok=True)
    assert repro(clean, "--jobs", "3").returncode == 0
    ran = sorted({line.split()[0] for line in log.read_text().splitlines()})
    assert ran == ["evaluate", "export-onnx", "finetune", "publish", "report"]
    assert clean.repro() == []


def test_after_a_failure_nothing_new_starts_and_the_exit_code_says_so(toy):
    (toy.folder / "wait.py").write_text("import sys; sys.exit(3)")
    done = subprocess.run([*REPRO, "--jobs", "1"], cwd=toy.folder, env=toy.environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "slow@a" in done.stderr and "slow@b" not in done.stderr
    assert not (toy.folder / "end.out").exists()


def test_a_second_start_is_refused_in_one_line_while_the_first_continues(toy):
    (toy.folder / "wait.py").write_text(
        "import sys, time, pathlib\nname = sys.argv[1]\nopen(f'{name}.begun', 'w')\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.05)\nopen(f'{name}.out', 'w').write(name)\n"
    )
    with subprocess.Popen([*REPRO, "--jobs", "2"], cwd=toy.folder, env=toy.environment, stdout=subprocess.PIPE, text=True) as first:
        try:
            wait_until(lambda: all((toy.folder / f"{name}.begun").exists() for name in "ab"))
            second = subprocess.run(REPRO, cwd=toy.folder, env=toy.environment, capture_output=True, text=True, check=False)
        finally:
            (toy.folder / "go").touch()
        first.communicate(timeout=120)
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert second.stderr.startswith(f"error: another `dreamteacher repro` runs in {toy.folder}; wait until it ends")
    assert first.returncode == 0


def test_a_project_that_dvc_cannot_lock_is_not_called_unreadable(toy):
    with Repo(str(toy.folder)).lock:
        done = subprocess.run(REPRO, cwd=toy.folder, env=toy.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: DVC cannot lock {toy.folder}, most likely because another DVC command runs in it; wait until")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all_stages_and_none_is_left_behind(toy, signum):
    (toy.folder / "wait.py").write_text("import sys, time; open(sys.argv[1] + '.begun', 'w'); time.sleep(60)")
    with subprocess.Popen([*REPRO, "--jobs", "2"], cwd=toy.folder, env=toy.environment, start_new_session=True) as running:
        wait_until(lambda: all((toy.folder / f"{name}.begun").exists() for name in "ab"))
        below = psutil.Process(running.pid).children(recursive=True)
        if signum == signal.SIGINT:
            os.killpg(running.pid, signum)
        else:
            running.send_signal(signum)
        assert running.wait(20) == 128 + signum
    assert not psutil.wait_procs(below, timeout=5)[1]


def repro(project: Project, *words: str) -> Forked:
    """`dreamteacher repro WORDS`, as it goes on once it has imported what the stages need."""
    done = Forked(partial(cli.main, ["repro", *words]), project.folder, project.environment)
    done.wait()
    return done


@pytest.fixture
def ours(tmp_path: Path) -> Project:
    """A project whose stages are our own commands, for which no shell is started: the one that is named here can start nothing."""
    found = Project(tmp_path / "project", Path(sys.executable).parent)
    draw("segmentation", found.folder / "pictures")
    chain = {"ingest": {"cmd": "dreamteacher ingest", "deps": ["pictures"], "outs": ["artifacts/data"]}}
    for seed, name in enumerate(("finetune", "another")):
        place = f"artifacts/finetuned/scratch/{seed}"
        chain[name] = {
            "cmd": f"dreamteacher finetune --init scratch --seed {seed}",
            "deps": ["artifacts/data"],
            "outs": [place],
        }
    (found.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": chain}))
    (found.folder / "params.yaml").write_text(yaml.safe_dump(brief_params(Path("pictures")).model_dump(mode="json")))
    found.run("git", "init", "-q")
    found.run("dvc", "init", "-q")
    found.environment["SHELL"] = "/bin/false"
    return found


def test_our_own_stages_are_forks_and_give_the_bytes_of_started_ones(ours, tmp_path):
    done = repro(ours)
    assert done.returncode == 0, done.output
    made = [(ours.folder / f"artifacts/finetuned/scratch/{seed}/stage.json").read_bytes() for seed in (0, 1)]
    assert made[0] != made[1]
    again = str(tmp_path / "again")
    ours.run("dreamteacher", "finetune", "--init", "scratch", "--seed", "1", "--out", again)
    assert (tmp_path / "again/stage.json").read_bytes() == made[1]


def test_a_stage_of_ours_that_fails_says_why_in_one_line(ours):
    (ours.folder / "params.yaml").write_text("ingest: {source: nowhere}\n")
    done = repro(ours)
    assert done.returncode != 0
    assert "error: ingest.source: nowhere does not exist" in done.output
    assert "Traceback" not in done.output


def test_a_folder_without_dvc_is_refused_in_one_line(tmp_path):
    done = subprocess.run(REPRO, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path} is not a project; change to one") and done.stderr.count("\n") == 1
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text("stages: 3\n")
    done = subprocess.run(REPRO, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: DVC cannot read this project:") and done.stderr.count("\n") == 1
