"""Records that MLflow cannot accept now are sent later, completely and once."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracked import assert_complete, runs, stage

from dreamteacher import tracking
from dreamteacher.errors import Interrupted, UserError
from dreamteacher.mlflow_server import _is_logged
from dreamteacher.tracking import RECORDS, UNSENT, open_tracker, sync
from helpers import free_port, process_inside

STEPS = (0, 10, 40, 50)


def test_points_of_an_earlier_attempt_are_recognised_by_their_steps():
    logged = {"loss": [10, 40], "miou": [0, 0], "both": [0, 40]}
    sent = [(key, step) for key in ("loss", "miou", "both", "new") for step in STEPS if not _is_logged(key, step, logged)]
    assert sent == [
        ("loss", 0),
        ("loss", 50),
        ("miou", 10),
        ("miou", 40),
        ("miou", 50),
        ("both", 50),
        *(("new", s) for s in (0, 10, 40, 50)),
    ]


def test_dead_server_stops_no_stage_and_sync_sends_everything_later(dead, mlflow_server, monkeypatch, caplog):
    begin = time.monotonic()
    stage()
    assert time.monotonic() - begin < 60
    assert Path("artifacts/x/stage.json").exists()
    warnings = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert len(warnings) == 1
    assert "`dreamteacher sync`" in warnings[0]
    assert "\n" not in warnings[0]
    with pytest.raises(UserError, match="stays unsent"):
        sync()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    assert len(sync()) == 1
    found = runs()
    assert_complete(found["finetune init=mix seed=2"], found["chain adhoc"])
    assert not list(UNSENT.iterdir())
    assert sync() == []


def test_sync_that_breaks_off_sends_nothing_twice(dead, mlflow_server, monkeypatch):
    stage()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    real = tracking.replay
    for allowed in range(4):  # breaks off after ever more records, the last of them sent but not noted
        left = [None] * allowed

        def breaking(*args, left=left):
            real(*args)
            if not left:
                raise ConnectionError
            left.pop()

        with monkeypatch.context() as patch, pytest.raises(UserError):
            patch.setattr(tracking, "replay", breaking)
            sync()
    sync()
    found = runs()
    assert_complete(found["finetune init=mix seed=2"], found["chain adhoc"])


def test_a_stage_resumed_during_an_outage_is_one_run(dead, mlflow_server, monkeypatch):
    with pytest.raises(Interrupted):
        stage(fail=Interrupted(15, 3))
    stage()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    sync()
    assert set(runs()) == {"chain adhoc", "finetune init=mix seed=2"}
    assert runs()["finetune init=mix seed=2"].info.status == "FINISHED"


def test_journal_of_a_killed_process_is_sent_and_its_run_ends_as_killed():
    body = (
        "import os; from dreamteacher.tracking import open_tracker\n"
        "with open_tracker('ingest', {}, {}) as tracker:\n"
        "    tracker.metrics({'n': 1.0})\n"
        "    (tracker._journal / 'records.jsonl').open('a').write('{\"do\": \"met')\n"  # the torn line of a kill
        f"    os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    assert subprocess.run([sys.executable, "-c", body], check=False).returncode == -signal.SIGKILL
    assert len(sync()) == 1
    assert runs()["ingest"].info.status == "KILLED"
    assert runs()["ingest"].data.metrics == {"n": 1.0}


def test_a_torn_line_is_cut_off_on_a_full_disk_too(tmp_path, monkeypatch):
    records = tmp_path / RECORDS
    records.write_text('{"do": "start"}\n{"do": "met')

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    tracking._drop_torn_line(tmp_path)
    assert records.read_text() == '{"do": "start"}\n'


def test_a_stop_stays_a_stop_where_the_disk_has_no_room_for_the_last_record(monkeypatch):
    real = tracking.append_line

    def full(path, line):
        if '"do": "end"' in line:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, line)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking, "append_line", full)
        stage(fail=KeyboardInterrupt())
    assert len(sync()) == 1
    assert runs()["finetune init=mix seed=2"].info.status == "KILLED"


@pytest.mark.parametrize("then", ["stage", "sync"])
def test_records_go_to_a_new_run_after_a_change_of_server(then, database, tmp_path, monkeypatch):
    """The stage was stopped, MLflow moved or its database was removed, and the run of before is unknown."""
    with pytest.raises(Interrupted):
        stage(fail=Interrupted(15, 3))
    if then == "sync":  # it was killed while the old server was away
        (UNSENT / "x").mkdir(parents=True)
        start = {"do": "start", "run": "0123", "name": "x", "chain": "adhoc", "experiment": os.environ["MLFLOW_EXPERIMENT_NAME"]}
        lines = [start | {"uri": database, "memory": None, "time": 1}, {"do": "metrics", "values": {"n": 1.0}, "step": 0, "time": 2}]
        (UNSENT / "x" / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (UNSENT / "x" / "cursor.json").write_text(json.dumps({"sent": 1, "run": "0123"}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    if then == "stage":
        stage()
        assert_complete(runs()["finetune init=mix seed=2"], runs()["chain adhoc"])
    else:
        assert sync() == ["x"]
        assert runs()["x"].data.metrics == {"n": 1.0}
    assert not list(UNSENT.glob("*/records.jsonl"))


def test_a_journal_that_cannot_be_sent_does_not_stop_the_others(dead, mlflow_server, monkeypatch):
    for name in ("ingest", "publish"):
        with open_tracker(name, {}, {}):
            pass
    first, _ = sorted(UNSENT.glob("*/records.jsonl"))
    (UNSENT / "a-empty").mkdir()
    (UNSENT / "a-empty" / "records.jsonl").write_text('{"do": "sta')  # killed in its first line
    first.write_text(first.read_text().replace('"do": "tags"', '"do": "metrics"', 1))  # words for figures
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    with pytest.raises(
        UserError, match=rf"^MLflow at {mlflow_server} does not accept .*{first.parent.name} stays unsent \(1 in all; 1 were sent\)$"
    ):
        sync()
    assert list(UNSENT.glob("*/records.jsonl")) == [first]
    assert "publish" in runs()


def test_the_place_that_did_not_answer_is_named(dead, monkeypatch):
    stage()
    place = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match=f"MLflow at {place} does not accept"):
        sync()


def test_a_database_that_cannot_be_opened_stops_no_stage(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/1/none.db")
    begin = time.monotonic()
    stage()
    assert time.monotonic() - begin < 30  # MLflow's own tries take 200 s
    assert list(UNSENT.glob("*/records.jsonl"))


def test_sync_leaves_running_stages_alone():
    with process_inside("from dreamteacher.tracking import open_tracker\nwith open_tracker('ingest', {}, {}):"):
        assert sync() == []
    assert runs()["ingest"].info.status == "FINISHED"


def test_a_stage_that_starts_again_while_its_records_are_sent_continues_in_a_new_journal(dead):
    """`dreamteacher sync` may take long, and the user may not wait for it."""
    memory = Path("run.json")
    with pytest.raises(KeyboardInterrupt), open_tracker("ingest", {}, {}, memory):
        raise KeyboardInterrupt
    (first,) = UNSENT.iterdir()
    with (
        process_inside(f"from pathlib import Path; from dreamteacher.locks import lock\nwith lock(Path('{first}/lock')):"),
        open_tracker("ingest", {}, {}, memory),
    ):
        (second,) = set(UNSENT.iterdir()) - {first}
    assert (second / RECORDS).exists()
    assert json.loads(memory.read_text())["journal"] == second.name


def test_records_that_another_process_sends_meanwhile_are_no_failure(dead, mlflow_server, monkeypatch):
    for name in ("ingest", "publish"):
        with open_tracker(name, {}, {}):
            pass
    first, second = sorted(UNSENT.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    send = tracking._send
    monkeypatch.setattr(tracking, "_send", lambda journal: send(journal) or shutil.rmtree(second))
    assert sync() == [first.name]


def test_a_stage_that_is_sent_late_does_not_end_the_chains_run_again(monkeypatch, database):
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(ValueError, match="boom"), open_tracker("ingest", {}, {}):
            raise ValueError("boom")
    stage()
    before = runs()["chain adhoc"].info
    sync()
    after = runs()["chain adhoc"].info
    assert (after.status, after.end_time) == (before.status, before.end_time) == ("FINISHED", before.end_time)
    assert runs()["ingest"].info.status == "FAILED"


def test_what_is_sent_later_is_sent_by_one_sync_for_all(monkeypatch):
    """No stage imports mlflow then, unless it takes so long that somebody may want to watch it."""
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "later")
    monkeypatch.setattr(tracking, "SEND_EVERY", 0)
    sent, send = [], tracking._send
    monkeypatch.setattr(tracking, "_send", lambda journal: sent.append(journal) or send(journal))
    for name in ("ingest", "train-teacher"):
        with open_tracker(name, {}, {}) as tracker:
            tracker.metrics({"loss": 1.0}, step=1)
    assert sent == []
    assert len(tracking.sync()) == 2
    assert {"ingest", "train-teacher"} < set(runs())
    monkeypatch.setattr(tracking, "LATER", 0)
    with open_tracker("finetune", {}, {}) as tracker:
        tracker.metrics({"loss": 1.0}, step=1)
    assert runs()["finetune"].info.status == "FINISHED"
