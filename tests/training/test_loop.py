"""The training loop: the same result after interruptions and for any split of the batch."""

import json
import math
import os
import random as dice
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from tiny_run import (
    Pictures,
    build,
    capture,
    compiled_in_pair,
    denoise,
    ended,
    in_pair,
    launch,
    outcome,
    own_handlers,
    run,
    slow,
    start,
    wait_for_records,
)
from torch import nn

from dreamteacher.errors import Interrupted, UserError
from dreamteacher.training import run as run_module
from dreamteacher.training.checkpoint import list_checkpoints, save_checkpoint
from dreamteacher.training.optim import Rate


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return ended(folder, start(folder))


def test_killed_run_ends_with_the_same_bytes(tmp_path: Path, undisturbed: bytes) -> None:
    folder = tmp_path / "run"
    for records in (3, 10, 16):
        child = start(folder, slow)
        wait_for_records(folder, records)
        time.sleep(dice.uniform(0, 0.05))
        assert child.pid
        os.kill(child.pid, signal.SIGKILL)
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    assert ended(folder, start(folder)) == undisturbed
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 60


@pytest.mark.parametrize(("signum", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_signal_writes_a_checkpoint_and_the_run_resumes(tmp_path: Path, undisturbed: bytes, signum: signal.Signals, workers: int) -> None:
    """The signal goes to the loader's workers as well, as Ctrl-C and `timeout` send it."""
    folder = tmp_path / "run"
    child = start(folder, in_own_group, settings={"checkpoint_every": 1000, "workers": workers})
    wait_for_records(folder, 4)
    assert child.pid
    os.killpg(child.pid, signum)
    output = ended(folder, child).decode()
    assert output.startswith(f"Interrupted: stopped by signal {signum.value} at step ")
    (left,) = list_checkpoints(folder)
    assert int(left.name.split("-")[1]) == int(output.split("at step ")[1].split(";")[0]) < 60
    assert ended(folder, start(folder)) == undisturbed


def in_own_group(model, batch, random):
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
        for child in torch.multiprocessing.active_children():
            os.setpgid(child.pid, os.getpid())
    return slow(model, batch, random)


class SendsSigterm(Pictures):
    """Whose first picture comes when the process is told to stop."""

    def __getitem__(self, item):
        signal.raise_signal(signal.SIGTERM)
        return super().__getitem__(item)


def test_a_signal_before_the_first_step_after_a_resume_changes_nothing(tmp_path: Path, undisturbed: bytes) -> None:
    """The checkpoint holds steps that no record covers yet."""
    settings = {"checkpoint_every": 1000}

    def stop_after_10(model, batch, random):
        if random.step == 9:
            signal.raise_signal(signal.SIGTERM)
        return denoise(model, batch, random)

    for how in ({"step": stop_after_10}, {"data": SendsSigterm()}):
        with pytest.raises(Interrupted, match="stopped by signal 15 at step 10"):
            run(tmp_path / "run", settings=settings, **how)
    assert ended(tmp_path / "run", start(tmp_path / "run")) == undisturbed


def test_a_signal_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="at step 0"):
        run(tmp_path, data=SendsSigterm())
    assert list_checkpoints(tmp_path) == []


def test_a_second_sigterm_does_not_disturb_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has ended the wait for pictures."""

    class StopsAtTheThirdStep(Pictures):
        n_batches = 0

        def __getitem__(self, item):
            self.n_batches += 1
            if self.n_batches > 16:
                signal.raise_signal(signal.SIGTERM)
            return super().__getitem__(item)

    def save(*args):
        signal.raise_signal(signal.SIGTERM)
        return save_checkpoint(*args)

    monkeypatch.setattr(run_module, "save_checkpoint", save)
    with pytest.raises(Interrupted, match="at step 2"):
        run(tmp_path, data=StopsAtTheThirdStep())
    assert [path.name.split("-")[1] for path in list_checkpoints(tmp_path)] == ["00000002"]


def test_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    def stubborn(model, batch, random):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return denoise(model, batch, random)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stubborn)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_works_in_a_thread(tmp_path: Path) -> None:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(len(run(tmp_path, settings={"steps": 4}).history)))
    thread.start()
    thread.join()
    assert results == [1]


def test_damaged_checkpoints_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = outcome(run(tmp_path))
    newest = list_checkpoints(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[:-1000])
    capsys.readouterr()
    assert outcome(run(tmp_path)) == whole
    output = capsys.readouterr().err
    assert f"checkpoint {newest} is passed over: its checksum is wrong" in output
    assert "resumes after step 56" in output
    for path in list_checkpoints(tmp_path):
        path.write_bytes(b"")
    assert outcome(run(tmp_path)) == whole
    output = capsys.readouterr().err
    assert output.count("is passed over") == 3
    assert "tiny: starts 60 steps" in output


def test_checkpoint_of_another_model_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, settings={"steps": 4})
    run(tmp_path, model=build(norm=False), settings={"steps": 4})
    assert "it is of another model" in capsys.readouterr().err


def test_full_disk_is_one_line_and_leaves_what_was(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    output = ended(folder, start(folder, fill_disk_after_16)).decode()
    assert output.startswith(f"UserError: cannot write to {folder}: File too large; make room")
    assert "\n" not in output
    assert [path.name.split("-")[1] for path in list_checkpoints(folder)] == ["00000014", "00000007"]
    assert not list(folder.glob(".*"))


def fill_disk_after_16(model, batch, random):
    if random.step == 16:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    return denoise(model, batch, random)


@pytest.mark.parametrize("log_every", [1, 1000], ids=["while a record is written", "while a checkpoint is written"])
def test_a_stop_on_a_full_disk_is_a_stop(tmp_path: Path, log_every: int) -> None:
    folder = tmp_path / "run"
    said = ended(folder, start(folder, fill_disk_and_stop, settings={"log_every": log_every})).decode()
    assert said.startswith(f"Interrupted: stopped by signal 2 at step 16, which is not saved: cannot write to {folder}: File too large")
    assert [path.name.split("-")[1] for path in list_checkpoints(folder)] == ["00000014", "00000007"]


def fill_disk_and_stop(model, batch, random):
    if random.step == 15:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        signal.raise_signal(signal.SIGINT)
    return denoise(model, batch, random)


def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file/below: Not a directory"):
        run(tmp_path / "file" / "below")


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_not_finite_stops_before_a_checkpoint_is_spoilt(tmp_path: Path, broken: str) -> None:
    def breaks(model, batch, random):
        losses = denoise(model, batch, random)
        if random.step == 9:
            zero = (losses["loss"] - losses["loss"].detach()).abs()
            losses["loss"] = losses["loss"] * math.nan if broken == "loss" else losses["loss"] + zero.sqrt()
        return losses

    with pytest.raises(UserError, match=r"tiny: not finite at step 10: .*grad_norm; lower lr \(now 0.001\)") as caught:
        run(tmp_path, breaks, settings={"log_every": 100})
    assert ("loss" in str(caught.value).split(";")[0].split(":")[-1]) == (broken == "loss")
    assert [path.name.split("-")[1] for path in list_checkpoints(tmp_path)] == ["00000007"]


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path / "1", model=build(norm=False), settings={"precision": "fp32"})
    parts = run(tmp_path / "4", model=build(norm=False), settings={"precision": "fp32", "accumulate": 4})
    same_history(parts.history, whole.history)
    for one, other in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    """By torchrun: the same curve and weights, one stop for both though one is told, a resume with the same bytes."""
    pair = launch(in_pair, tmp_path / "pair")
    whole = run(tmp_path / "one", model=build(norm=False), settings={"precision": "fp32"})
    for result in pair.values():
        assert result["processes"] == 2
        same_history(result["history"], whole.history)
        for key, value in whole.model.state_dict().items():
            np.testing.assert_allclose(result["weights"][key], value.numpy(), rtol=1e-4, atol=1e-5)
        assert result["stopped"] == (15, 17)
        assert result["same"]


def test_accelerate_launch_starts_processes_that_train_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in this process, which has torch; it starts the two others."""
    body = (
        "import json, os, sys; from pathlib import Path; from tiny_run import build, run\n"
        "result = run(Path(sys.argv[1]), model=build(norm=False), settings={'precision': 'fp32'})\n"
        "if os.environ['RANK'] == '0': Path(sys.argv[2]).write_text(json.dumps([int(os.environ['WORLD_SIZE']), result.history]))\n"
    )
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "--no_python"]
    command = [sys.executable, "-c", body, str(tmp_path / "pair"), str(tmp_path / "history.json")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    with own_handlers():
        launch_command(launch_command_parser().parse_args([*options, *command]))
    processes, history = json.loads((tmp_path / "history.json").read_text())
    assert processes == 2
    same_history(history, run(tmp_path / "one", model=build(norm=False), settings={"precision": "fp32"}).history)


def same_history(rows: list[dict[str, float]], others: list[dict[str, float]]) -> None:
    assert len(rows) == len(others) > 10
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_batch_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch of 8 cannot be split evenly into 3 parts .* multiple of 3"):
        run(tmp_path, settings={"accumulate": 3})


def test_loader_processes_change_nothing(tmp_path: Path) -> None:
    settings = {"steps": 8}
    assert outcome(run(tmp_path / "0", settings=settings)) == outcome(run(tmp_path / "2", settings={**settings, "workers": 2}))


def test_the_history_has_a_row_per_record_and_the_result_is_on_the_cpu(tmp_path: Path) -> None:
    seen: list[tuple[bool, int]] = []

    def on_eval(model: nn.Module, step: int) -> dict[str, float]:
        seen.append((model.training, step))
        return {"figure": step}

    network = build()
    trained = run(tmp_path, model=network, settings={"steps": 25}, on_eval=on_eval)
    assert seen == [(False, 10), (False, 20), (False, 25)]
    rows = {row["step"]: row for row in trained.history}
    assert list(rows) == [4, 8, 10, 12, 16, 20, 24, 25]
    assert set(rows[4]) == {"step", "loss", "noise", "lr", "grad_norm"}
    assert set(rows[10]) == {"step", "figure"}
    assert set(rows[20]) == {"step", "loss", "noise", "lr", "grad_norm", "figure"}
    assert trained.model is network and not network.training and trained.ema is not None
    assert all(value.is_contiguous() for value in [*network.state_dict().values(), *trained.ema.state_dict().values()])
    record = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert set(record) == {*rows[4], "img_per_s", "data_wait", "seconds", "pictures"}


def test_learning_rate_by_parameter_name(tmp_path: Path) -> None:
    frozen = build(norm=False)
    before = frozen[0].weight.detach().clone()
    run(tmp_path, model=frozen, settings={"steps": 4}, rates=lambda name: Rate(1e-30 if name.startswith("0.") else 1.0))
    torch.testing.assert_close(frozen[0].weight, before, rtol=0, atol=1e-12)


def test_the_message_of_an_interruption_names_its_signal() -> None:
    assert "signal 15 at step 7" in str(Interrupted(15, 7))


def test_what_is_compiled_learns_the_same_and_comes_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the graph as it was captured; also stopped by an error and resumed."""
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: (compiled.append(module), capture(module)))
    model = build(norm=False)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "compiled", stop_late, model=model, settings={"compile": True})
    made = run(tmp_path / "compiled", model=build(norm=False), settings={"compile": True})
    assert capsys.readouterr().err.count(", compiled, ") == 2
    assert compiled == [model, made.model] and made.model._compiled_call_impl is None
    assert outcome(made) == outcome(run(tmp_path / "plain", model=build(norm=False)))


def stop_late(model, batch, random):
    return denoise(model, batch, random) if random.step < 20 else {"loss": 1 / 0}


def test_two_processes_learn_the_same_from_what_is_compiled(tmp_path: Path) -> None:
    assert list(launch(compiled_in_pair, tmp_path).values()) == [{"processes": 2, "same": True}] * 2
