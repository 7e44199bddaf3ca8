"""Progress output and log records of training."""

import io
import json
import sys
from pathlib import Path

import pytest

from dreamteacher.training import progress
from dreamteacher.training.progress import Display, Pace, Records

RECORD = {"loss": 0.25, "img_per_s": 123.4, "data_wait": 0.07}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(steps: int = 5, shown: bool = True) -> None:
    with Display("work", steps, shown) as display:
        display.say("hello")
        display.start_at(2)
        for done in range(3, steps + 1):
            display.record(RECORD)
            display.step(done)


def test_without_a_terminal_progress_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["hello", "work: step 5/5  loss 0.25  123 img/s  data wait 7%  ETA 0:00:00"]


def test_a_plain_line_every_half_minute_says_how_far_how_fast_and_how_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Display("work", 1000, True) as display:
        display.start_at(400)
        for done in range(401, 500):
            now[0] += 1
            display.record(RECORD)
            display.step(done)
    rate = "loss 0.25  123 img/s  data wait 7%"
    assert capsys.readouterr().err.splitlines() == [
        f"work: step 431/1000  {rate}  ETA 0:09:29",
        f"work: step 462/1000  {rate}  ETA 0:08:58",
        f"work: step 493/1000  {rate}  ETA 0:08:27",
    ]


def test_a_terminal_gets_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    show()
    seen = terminal.getvalue()
    for text in ("hello", "work", "5/5", "loss 0.25", "123 img/s", "data wait 7%", "ETA"):
        assert text in seen


def test_only_the_first_process_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    show(shown=False)
    assert capsys.readouterr().err == ""


def test_pace_counts_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    pace = Pace()
    pace.add(10, 0.5)
    now[0] = 2.0
    assert pace.read() == {"img_per_s": 5.0, "data_wait": 0.25}
    now[0] = 3.0
    assert pace.read() == {"img_per_s": 0.0, "data_wait": 0.0}


def test_seconds_of_training_leave_out_pauses_and_go_on_from_an_earlier_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    pace = Pace()
    pace.go_on_at(100.0)
    pace.add(10, 0.0)
    now[0] = 4.0
    with pace.paused():
        now[0] = 9.0
    now[0] = 10.0
    assert pace.read()["img_per_s"] == 2.0
    assert pace.seconds() == 105.0
    now[0] = 12.0
    assert pace.seconds() == 107.0


def test_records_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log.jsonl"
    records = Records(path, 0)
    for step in (5, 10, 15):
        records.add({"step": step, "loss": 0.5})
    with path.open("a") as file:
        file.write('{"step": 7')
    Records(path, 10).add({"step": 20})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [5, 10, 20]
