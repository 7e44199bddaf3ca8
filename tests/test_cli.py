import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from dreamteacher import cli, stage_commands
from dreamteacher.errors import Interrupted, UserError
from dreamteacher.settings.file import load_params
from helpers import PROJECT

HEAVY = ("torch", "numpy", "mlflow", "PIL", "pydantic", "yaml", "onnxruntime", "rich")


@pytest.fixture
def stage(monkeypatch, in_tmp):
    """Replace the stages by one that records its call; set `.outcome` to a result or an exception."""

    class Recorded:
        outcome: object = {"loss": 0.12345678, "n": 3.0}
        name, params, arguments = "", None, {}

        def run(self, params, **arguments):
            self.params, self.arguments = params, arguments
            if isinstance(self.outcome, BaseException):
                raise self.outcome
            return self.outcome

    recorded = Recorded()
    monkeypatch.setattr(stage_commands, "import_module", lambda name: setattr(recorded, "name", name) or recorded)
    return recorded


def test_help_answers_at_once_and_imports_nothing_heavy():
    body = f"import sys, dreamteacher.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: print([m for m in {HEAVY} if m in sys.modules])"
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=True)
    print(f"dreamteacher --help took {time.perf_counter() - begin:.2f} s")
    assert done.stdout.splitlines()[-1] == "[]"
    listed = re.findall(r"^    ([a-z]\S+)", done.stdout, re.M)
    assert listed[:8] == ["doctor", "init", "params", "ingest", "assess", "train-teacher", "tune", "distill-features"]  # the order of use
    assert {*cli.STAGES, *cli.TOOLS, "repro", "sync", "serve", "predict", "promote", "pipelines"} <= set(listed)


@pytest.mark.parametrize(("before", "after"), [("strict", "backslashreplace"), ("surrogateescape", "surrogateescape")])
@pytest.mark.parametrize("command", ["params", "pipelines"])
def test_what_the_locale_lacks_is_escaped(command, before, after, monkeypatch, in_tmp):
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii", errors=before)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(cli, "import_module", lambda _: SimpleNamespace(main=lambda *_: 0))
    monkeypatch.setattr(cli, "_run_params", lambda _: 0)
    assert cli.main([command]) == 0
    assert stdout.errors == after


def test_every_stage_has_a_module_and_a_line_of_help(capsys):
    for name in cli.STAGES:
        assert (PROJECT / f"src/dreamteacher/stages/{name.replace('-', '_')}.py").exists()
        with pytest.raises(SystemExit) as done:
            cli.main([name, "--help"])
        assert done.value.code == 0
        assert "--overwrite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        ("ingest", {"source": None, "out": "artifacts/data"}),
        ("ingest --source s3://bucket/{0..3}.tar", {"source": "s3://bucket/{0..3}.tar"}),
        ("train-teacher", {"name": "own", "out": "artifacts/teachers/own"}),
        ("distill-features", {"recipe": "features", "teacher": "artifacts/teachers/own", "out": "artifacts/backbones/features"}),
        ("train-interpreter --seed 2", {"seed": 2, "teacher": "artifacts/teachers/own", "out": "artifacts/interpreters/mix/2"}),
        ("distill-labels --seed 1", {"recipe": "mix", "interpreter": "artifacts/interpreters/mix/1"}),
        ("distill-labels", {"seed": 0, "features": "artifacts/backbones/features"}),
        ("distill-labels --recipe mix --seed 1", {"out": "artifacts/backbones/mix/1"}),
        ("finetune --init scratch", {"backbone": None, "seed": 0, "out": "artifacts/finetuned/scratch/0"}),
        ("finetune --init imagenet", {"backbone": None}),
        ("finetune --init features --seed 4", {"backbone": "artifacts/backbones/features", "out": "artifacts/finetuned/features/4"}),
        ("finetune --init mix --seed 4 --out x", {"backbone": "artifacts/backbones/mix/4", "out": "x", "overwrite": False}),
        ("finetune --init mix --backbone y --overwrite", {"backbone": "y", "overwrite": True}),
        ("evaluate", {"finetuned": "artifacts/finetuned", "metrics": "metrics/evaluate.json", "plots": "plots/evaluate"}),
        ("export-onnx --set export.init=features --set export.seed=1", {"finetuned": "artifacts/finetuned/features/1"}),
        ("publish", {"onnx": "artifacts/onnx", "evaluation": "artifacts/evaluation", "out": "artifacts/triton"}),
        ("report", {"artifacts": "artifacts", "out": "artifacts/report"}),
    ],
)  # fmt: skip
def test_stage_gets_its_places(stage, arguments, places, capsys):
    assert cli.main(arguments.split()) == 0
    assert stage.name == f"dreamteacher.stages.{arguments.split()[0].replace('-', '_')}"
    for name, place in places.items():
        given = stage.arguments[name]
        assert (str(given) if isinstance(given, Path) else given) == place
    out = capsys.readouterr().out
    assert "loss = 0.123457" in out
    assert "n = 3" in out


@pytest.mark.parametrize("name", [*cli.STAGES, *cli.TOOLS])
def test_every_path_option_reaches_the_stage(stage, name):
    command = (cli.STAGES | cli.TOOLS)[name]
    paths = {option: f"in/{option}" for option in [*command.inputs, *command.optional, "out"]}
    init = ["--init", "scratch"] if "init" in command.named else []
    assert cli.main([name, *init, *(word for option, path in paths.items() for word in (f"--{option}", path))]) == 0
    assert {option: str(stage.arguments[option]) for option in paths} == paths


def test_predict_and_serve_pass_their_options(monkeypatch, in_tmp):
    calls = []
    modules = {"predict": "predict", "triton_server": "serve"}
    for module, function in modules.items():
        replacement = SimpleNamespace(**{function: lambda *values, **options: calls.append((values, options))})
        monkeypatch.setitem(sys.modules, f"dreamteacher.serving.{module}", replacement)
    words = "predict a.jpg --url h:1 --model m --out o --protocol grpc --features --batch 4 --format csv"
    assert cli.main(words.split()) == 0
    assert cli.main(["serve", "repository", "--http-port", "1", "--grpc-port", "2"]) == 0
    assert calls == [
        (
            ([Path("a.jpg")],),
            {"url": "h:1", "model": "m", "out": Path("o"), "protocol": "grpc", "features": True, "batch": 4, "output": "csv"},
        ),
        ((Path("repository"), 1, 2), {}),
    ]


def test_a_stage_that_does_not_train_runs_only_in_the_first_process_of_torchrun(stage, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["publish"]) == 0
    assert stage.name == ""
    assert cli.main(["finetune", "--init", "scratch"]) == 0
    assert stage.name == "dreamteacher.stages.finetune"


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999", "one"])
def test_an_invalid_seed_is_refused(seed, stage, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["finetune", "--init", "scratch", f"--seed={seed}"])
    assert stop.value.code == 2
    assert f"argument --seed: {seed} is not a whole number from 0 to 4294967295" in capsys.readouterr().err


def test_arguments_are_those_that_the_stages_take():
    """The stages import torch, so this is read from their source."""
    import ast

    for name, command in cli.STAGES.items():
        tree = ast.parse((PROJECT / f"src/dreamteacher/stages/{name.replace('-', '_')}.py").read_text())
        (run,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
        taken = {argument.arg for argument in run.args.kwonlyargs}
        given = {*command.inputs, *command.optional, *command.named, *(["seed"] if command.seed else []), "out", "overwrite"}
        assert taken == given, name
        assert [argument.arg for argument in run.args.args] == ["params"], name


def test_settings_come_from_the_named_file_and_set(stage):
    Path("mine.yaml").write_text("few_labels: 5\n")
    cli.main(["ingest", "--params", "mine.yaml", "--set", "distill.T=7", "--set", "distill.lr=1e-2"])
    assert (stage.params.few_labels, stage.params.distill.T, stage.params.distill.lr) == (5, 7, 0.01)


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [(UserError("no pictures; do this"), 2, "error: no pictures; do this\n"), (Interrupted(15, 30), 143, "at step 30"),
     (OSError(errno.EEXIST, "File exists", "README.md"), 2, "error: README.md: File exists; name another folder\n"),
     (Interrupted(2, 30), 130, "run the same command again"), (KeyboardInterrupt(), 130, "run the same command again")],
)  # fmt: skip
def test_user_errors_and_signals_are_one_line_and_a_code(stage, outcome, code, line, capsys):
    stage.outcome = outcome
    assert cli.main(["ingest"]) == code
    errors = capsys.readouterr().err
    assert line in errors
    assert errors.count("\n") == 1


def test_a_defect_shows_its_traceback(stage):
    stage.outcome = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(["ingest"])


def test_mistyped_setting_stops_before_anything_is_done(stage, capsys):
    assert cli.main(["ingest", "--set", "distil.T=3"]) == 2
    assert stage.params is None
    assert "did you mean 'distill.T'?" in capsys.readouterr().err


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_outside_training_stops_with_its_code(sent, code, in_tmp):
    body = (
        "import sys, time, types\nfrom dreamteacher import cli, stage_commands\n"
        "def run(params, **given): print('in', flush=True); time.sleep(60)\n"
        "stage_commands.import_module = lambda name: types.SimpleNamespace(run=run)\nsys.exit(cli.main(['ingest']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", body], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in\n"
        process.send_signal(sent)
        assert process.wait(30) == code
        assert process.stderr.read() == "stopped; run the same command again to resume\n"


def test_printed_settings_are_a_settings_file(in_tmp, capsys):
    assert cli.main(["params", "--set", "distill.T=7"]) == 0
    Path("all.yaml").write_text(capsys.readouterr().out)
    assert load_params(Path("all.yaml")) == load_params(None, ["distill.T=7"])


def test_output_cut_short_by_head_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m dreamteacher.cli params --markdown | head -1", shell=True, capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.startswith("| setting |")
    assert done.stderr == ""


def test_what_the_output_cannot_encode_is_escaped():
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    command = [sys.executable, "-m", "dreamteacher.cli", "params", "--set", "ingest.source=größe"]
    assert "source: gr\\xf6\\xdfe" in subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", env=ascii_only).stdout


def test_sync_says_what_it_sent(in_tmp, capsys):
    assert cli.main(["sync"]) == 0
    assert capsys.readouterr().out == "nothing to send\n"


def test_import_sends_no_telemetry():
    body = "import os, dreamteacher; print(os.environ['MLFLOW_DISABLE_TELEMETRY'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    assert subprocess.run([sys.executable, "-c", body], env=environment, capture_output=True, text=True, check=True).stdout == "true 1\n"


def test_threads_sleep_while_they_wait():
    """OpenMP reads the variable when torch is imported, so it must be set before; the user's own value stays."""
    body = "import os, sys, dreamteacher.cli; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for own, expected in (({}, "passive False\n"), ({"OMP_WAIT_POLICY": "active"}, "active False\n")):
        done = subprocess.run([sys.executable, "-c", body], env=environment | own, capture_output=True, text=True, check=True)
        assert done.stdout == expected


def test_command_is_installed():
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"dreamteacher": "dreamteacher.cli:main"}


def test_pipelines_are_commands_of_dreamteacher(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["pipelines", "compile", "--help"])
    assert done.value.code == 0
    assert "usage: dreamteacher pipelines compile" in capsys.readouterr().out


def test_a_missing_kfp_is_reported_with_its_remedy(in_tmp: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without_kfp(name: str, *rest: object, **more: object) -> object:
        if name.partition(".")[0] == "kfp" or name.startswith(("pipelines.compile", "pipelines.local")):
            raise ModuleNotFoundError("No module named 'kfp'", name="kfp")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_kfp)
    monkeypatch.setenv("DREAMTEACHER_IMAGE", f"x@sha256:{'0' * 64}")
    assert cli.main(["pipelines", "compile"]) == 2
    assert capsys.readouterr().err == "error: kfp is not installed; run pip install 'dreamteacher[pipelines]'\n"
