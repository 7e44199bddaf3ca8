"""The retrain pipeline by KFP's local runner, both branches, against a real registry.

tests/stages/test_retrain.py has all the rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
import yaml
from arrivals import TRAINED, UNTRAINED, Round, arrive
from local_runs import LocalRun, run_local
from mlflow.tracking import MlflowClient
from test_instances_stages import draw
from tiny_chain import brief_params

from benchmarks import retrain_rounds
from components.gate import gate
from components.promote import promote
from dreamteacher import cli
from dreamteacher.settings.file import load_params
from dreamteacher.stage import digest_of, read_stage
from pipelines.__main__ import build_parser

TRAINING = ("train-teacher", "distill-features", "train-interpreter", "distill-labels", "finetune")
LIMITS = (
    "compare.seeds=[0]",
    "export.size=32",
    *(f"retrain.{limit}" for limit in ("min_new_images=5", "metric_floor=0", "latency_ms=null")),
)
Retrain = Callable[[], LocalRun]


def finetuned(settings: dict[str, float]) -> list[str]:
    return [f"finetune.{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="module")
def registry(new_database: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    uri = new_database(tmp_path_factory.mktemp("registry"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.delenv("DREAMTEACHER_TRACKING")
        yield MlflowClient(uri)
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def incoming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("incoming")
    arrive(folder, range(6))
    return folder


@pytest.fixture(scope="module")
def champion(small_project: Path, incoming: Path, registry: MlflowClient, tmp_path_factory: pytest.TempPathFactory) -> Round:
    """The first round, in this process; it has seen all that has come in so far, and learned so little that the next is better."""
    params = load_params(small_project / "params.yaml", ["compare.inits=[mix]", *LIMITS, *finetuned(UNTRAINED)])
    first = Round(tmp_path_factory.mktemp("champion"), small_project / "pictures", incoming, params)
    outcome = first.run()
    assert outcome and outcome.promoted
    return first


@pytest.fixture(scope="module")
def retrain(small_project: Path, incoming: Path, champion: Round, tmp_path_factory: pytest.TempPathFactory) -> Retrain:
    def run() -> LocalRun:
        words = [word for setting in (f"retrain.incoming={incoming}", *LIMITS, *finetuned(TRAINED)) for word in ("--set", setting)]
        return run_local(small_project, tmp_path_factory.mktemp("runs") / "retrain", "--pipeline", "retrain", *words)

    return run


def aliases(registry: MlflowClient, name: str = "dreamteacher") -> dict[str, int]:
    return {alias: int(version) for alias, version in registry.get_registered_model(name).aliases.items()}


def test_with_nothing_new_the_run_succeeds_says_so_and_trains_nothing(retrain: Retrain, registry: MlflowClient) -> None:
    run = retrain()
    assert run.code == 0, run.output[-3000:]
    assert "nothing new: 0 new pictures, fewer than retrain.min_new_images = 5" in run.output
    assert not [step for step in TRAINING if list(run.steps.rglob(step))]
    assert aliases(registry) == {"champion": 1}


def test_broken_pictures_fail_the_run_before_anything_is_trained(retrain: Retrain, registry: MlflowClient, incoming: Path) -> None:
    broken = [incoming / f"broken{i}.png" for i in range(3)]
    for path in broken:
        path.write_bytes(b"broken")
    run = retrain()
    for path in broken:
        path.unlink()
    assert run.code == 2
    assert "3 of 9 incoming pictures cannot be used, more than ingest.max_bad_fraction" in run.output
    assert not [step for step in TRAINING if list(run.steps.rglob(step))]
    assert aliases(registry) == {"champion": 1}


@pytest.fixture(scope="module")
def promoted(retrain: Retrain, incoming: Path) -> LocalRun:
    arrive(incoming, range(100, 106), brightness=60)
    return retrain()


@pytest.mark.timeout(900)  # about 14 processes, each of which imports torch and mlflow
def test_what_arrives_is_trained_on_from_the_champion_and_promoted(champion: Round, promoted: LocalRun, registry: MlflowClient) -> None:
    run = promoted
    assert run.code == 0, run.output[-3000:]
    assert "promoted = true, version 2: miou" in run.output
    assert aliases(registry) == {"champion": 2, "previous": 1}
    for step in ("train-teacher", "distill-features"):
        name = {"train-teacher": "teacher", "distill-features": "features"}[step]
        assert read_stage(run.out(step))["inputs"]["start"] == digest_of(champion.root / name)
    drift = json.loads((run.out("compare-data") / "drift.json").read_text())
    assert drift["counts"]["n_new"] == 6
    assert drift["shifts"]["brightness"]["shift"] > 3 * drift["shifts"]["brightness"]["by_chance"]
    assert "embedding_shift" in next(run.steps.rglob("compare-data/page")).read_text()
    pages = {step: next(run.steps.rglob(f"{step}/page")).read_text() for step in ("fetch-champion", "gate", "promote")}
    assert "miou_mean" in pages["fetch-champion"]
    assert "passed: no regression" in pages["gate"]
    assert "<td>version 2</td>" in pages["promote"]
    told = next(run.steps.rglob("report/page")).read_text()
    assert "6 pictures are new" in told and "Compared with champion version 1." in told and "is missing" not in told


def test_what_a_gate_refuses_ends_well_and_changes_no_champion(
    promoted: LocalRun, small_project: Path, registry: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last steps once more, on the same model, with a limit that none passes."""
    params = load_params(small_project / "params.yaml", [*LIMITS, "retrain.metric_floor=1"])

    def artifact(path: Path) -> SimpleNamespace:
        return SimpleNamespace(path=str(path), metadata={})

    made = {name: artifact(promoted.out(step)) for name, step in (("data", "ingest"), ("onnx", "export-onnx"), ("evaluation", "evaluate"))}
    verdict, page = artifact(tmp_path / "verdict"), artifact(tmp_path / "page")
    champion = artifact(next(promoted.steps.rglob("fetch-champion/champion")))
    settings = params.section("export", "retrain")
    assert gate.python_func(**made, champion=champion, settings=settings, out=verdict, page=page) is False
    assert "FAILED: floor" in (tmp_path / "page").read_text()
    outcome = promote.python_func(verdict=verdict, onnx=made["onnx"], settings=params.section("publish"), page=page)
    assert (outcome[0], outcome[1]) == (False, "2")
    assert outcome[2].startswith("floor")
    assert "promoted = false, version 2: floor" in capsys.readouterr().out
    assert aliases(registry) == {"champion": 2, "previous": 1}


@pytest.fixture
def without_label_recipes(tmp_path: Path) -> Path:
    """A project such as `dreamteacher init` writes for a task whose pictures have no soft labels."""
    draw(tmp_path / "project/pictures")
    settings = brief_params(Path("pictures"), ingest={"task": "instances", "short_side": 32}, publish={"name": "objects", "instances": 1})
    changes = {"label_recipes": {}, "compare": {"inits": ["scratch", "features"], "seeds": [0]}, "export": {"init": "features"}}
    (tmp_path / "project/params.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json") | changes))
    return tmp_path / "project"


@pytest.mark.timeout(1800)  # both pipelines
def test_a_project_without_label_recipes_goes_from_its_first_champion_to_the_next(
    without_label_recipes: Path, registry: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [word for setting in LIMITS for word in ("--set", setting)]
    first = run_local(without_label_recipes, tmp_path / "runs/pretrain", "--pipeline", "pretrain", *limits)
    assert first.code == 0, first.output[-3000:]
    monkeypatch.chdir(without_label_recipes)
    assert cli.main(["promote"]) == 0
    assert aliases(registry, "objects") == {"champion": 1}

    arrive(tmp_path / "incoming", range(6))
    words = ["--set", f"retrain.incoming={tmp_path / 'incoming'}", "--set", "retrain.regression_z=100"]
    run = run_local(without_label_recipes, tmp_path / "runs/retrain", "--pipeline", "retrain", *limits, *words)
    assert run.code == 0, run.output[-3000:]
    assert "promoted = true, version 2: ap" in run.output
    assert aliases(registry, "objects") == {"champion": 2, "previous": 1}
    assert read_stage(run.out("train-teacher"))["inputs"]["start"] == digest_of(first.out("train-teacher"))
    assert list(json.loads((run.out("evaluate") / "metrics.json").read_text())) == ["features"]
    assert not list(run.steps.rglob("distill-labels"))
    assert "is missing" not in next(run.steps.rglob("report/page")).read_text()


def test_the_benchmark_of_rounds_uses_options_that_run_local_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    run = lambda command, **_: commands.append(command) or SimpleNamespace(stdout="promoted = true, version 1: miou 0.8")  # noqa: E731
    monkeypatch.setattr(retrain_rounds, "subprocess", SimpleNamespace(run=run, PIPE=None, STDOUT=None))
    monkeypatch.setattr(retrain_rounds, "aliases", lambda _: {})
    assert retrain_rounds.run_round("+0", tmp_path, ["0", "1"], ["finetune.steps=1"])["end"] == "promoted"
    options = build_parser().parse_args(commands[0][3:])
    given = ["ingest.source=pictures", f"retrain.incoming={tmp_path}/incoming", "compare.seeds=[0,1]", "finetune.steps=1"]
    assert (options.pipeline, options.project, options.set) == ("retrain", tmp_path / "project", given)
