import subprocess
import sys
from pathlib import Path

import pytest

from dreamteacher import doctor
from dreamteacher.tracking import open_tracker
from helpers import PROJECT, free_port


@pytest.fixture(autouse=True)
def here(in_tmp):
    Path("pictures").mkdir()
    Path("params.yaml").write_text("ingest: {source: pictures}\n")


def test_machine_that_can_run_the_chain_gets_exit_code_0(capsys):
    assert doctor.examine() == 0
    out = capsys.readouterr().out
    for what in ("python", "packages", "cpu", "memory", "disk", "settings", "git", "dvc", "mlflow", "triton"):
        assert any(line.split()[1] == what for line in out.splitlines()[:-1]), what
    assert "torch " in out
    assert out.endswith("the chain can run here\n")


def test_outside_a_project_only_the_machine_is_judged(capsys):
    Path("params.yaml").unlink()
    assert doctor.examine() == 0
    out = capsys.readouterr().out
    assert not {"pictures", "git", "dvc"} & {line.split()[1] for line in out.splitlines()[:-1]}
    assert out.splitlines()[-1].endswith("dreamteacher init FOLDER --source PICTURES")


def test_looking_leaves_nothing_behind():
    before = sorted(Path().rglob("*"))
    doctor.examine()
    assert sorted(Path().rglob("*")) == before


def found(look) -> dict[str, tuple[str, str]]:
    return {what: (state, words) for state, what, words in look()}


def test_missing_pictures_and_bad_settings_are_what_stops_the_chain(monkeypatch, capsys):
    Path("params.yaml").write_text("ingest: {source: nowhere}\n")
    assert found(doctor._settings)["pictures"] == ("missing", "ingest.source = nowhere does not exist here")
    Path("params.yaml").write_text("distil: {}\n")
    monkeypatch.setattr(doctor, "_packages", lambda: [])
    assert doctor.examine() == 1
    assert "missing  settings" in capsys.readouterr().out


def test_shards_on_s3_are_not_looked_for_here():
    Path("params.yaml").write_text("ingest: {source: 's3://bucket/{000..010}.tar'}\n")
    assert list(found(doctor._settings)) == ["settings"]


def test_absent_and_outdated_packages_are_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=99", "no-such-package>=2", "moto; extra == 'test'"])
    states = found(doctor._packages)
    assert states["torch"][0] == "warn"
    state, words = states["no-such-package"]
    assert state == "missing"
    assert words.endswith(" 'no-such-package>=2'")
    command, option, pins, _ = words.removeprefix("not installed; pip ").rsplit(maxsplit=3)
    assert (command, option) == ("install", "-c")
    assert Path(pins).read_text() == (PROJECT / "constraints.txt").read_text(), "a file that there is, wherever doctor is called"
    assert "moto" not in str(states)


def test_silent_mlflow_server_is_a_warning_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{free_port()}")
    state, words = found(doctor._mlflow)["mlflow"]
    assert state == "warn"
    assert "does not answer" in words
    assert "hunter2" not in words


def test_answering_mlflow_server_is_fine(mlflow_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    assert found(doctor._mlflow)["mlflow"] == ("ok", mlflow_server)


def test_unsent_records_are_pointed_out_and_a_running_stage_is_no_fault(monkeypatch):
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "later")
    with open_tracker("ingest", {}, {}):
        held = subprocess.run([sys.executable, "-c", "from dreamteacher import doctor; print(*doctor._mlflow(), sep='\\n')"], check=True,
                              capture_output=True, text=True).stdout.splitlines()  # fmt: skip
    assert "'ok', 'mlflow', '1 stages are running" in held[1] and len(held) == 2
    state, words = [(state, words) for state, _, words in doctor._mlflow()][1]
    assert (state, words) == ("warn", "1 stages have records to send; dreamteacher sync")


def test_git_wants_a_repository_and_then_a_commit():
    assert found(doctor._git_and_dvc)["git"] == ("warn", "no commit here: results cannot say what settings made them; git init")
    subprocess.run(["git", "init", "--quiet"], check=True)
    assert found(doctor._git_and_dvc)["git"][1].endswith("; git add . && git commit")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, "commit", "--quiet", "--allow-empty", "--message", "first"], check=True)
    assert found(doctor._git_and_dvc)["git"][0] == "ok"


def test_dvc_remote_is_named():
    subprocess.run(["dvc", "init", "-q", "--no-scm"], check=True)
    assert found(doctor._git_and_dvc)["dvc"][0] == "warn"
    subprocess.run(["dvc", "remote", "add", "-q", "-d", "storage", "s3://models/cache"], check=True)
    assert found(doctor._git_and_dvc)["dvc"][1].startswith("remote storage s3://models/cache")
