"""Metrics of `dreamteacher assess`, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_chain import TASKS, Chain, brief_params, draw

from dreamteacher import cli
from dreamteacher.assessment import trainings
from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.holdout import hold_out, is_crossed
from dreamteacher.errors import UserError
from dreamteacher.project import cost, machine
from dreamteacher.settings.schema import Params
from dreamteacher.stages import assess, ingest

KNOWN = {3: 0.5, 6: 0.6}  # labels: figure; one doubling gains ten points


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chain]:
    """The data set of each task; nothing is pretrained before an assessment."""
    made = {}
    for task in TASKS:
        root = tmp_path_factory.mktemp(task)
        source = draw(task, root / "pictures")
        made[task] = Chain(task, source, root, brief_params(source))
        ingest.run(made[task].params, source=source, out=root / "data")
    return made


@pytest.fixture(autouse=True)
def a_machine_that_is_timed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SECONDS", 0)


def brief(chain: Chain, few: int | None = 6, **changes: Any) -> Params:
    params = brief_params(chain.source)
    settings = params.assess.model_copy(update={"draws": 2, "minutes": 600, **changes})
    return params.model_copy(update={"few_labels": few, "assess": settings})


def run(chain: Chain, out: Path, few: int | None = 6, **changes: Any) -> dict[str, Any]:
    assess.run(brief(chain, few, **changes), data=chain.root / "data", out=out)
    return json.loads((out / "assess.json").read_text())


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(labels, draw, steps) of each training; instead of it come the figures of KNOWN, a point more in draw 1, two with more steps."""
    done: list[tuple[int, int, int]] = []

    def fit(params: Params, images: ImageSet, few: list[int], *, init: str, seed: int, place: Any) -> Any:
        assert init == "scratch"
        if "timing" not in place.title:
            done.append((len(few), seed, params.finetune.steps))
            place.checkpoints.mkdir(parents=True)
        return SimpleNamespace(ema=None, model=None)

    def score(model: Any, images: ImageSet, *args: Any, among: list[int]) -> Any:
        if not done or model is not None:
            return {"miou": 0.0}, {}
        labels, draw, steps = done[-1]
        return {"miou": KNOWN[labels] + 0.01 * draw + 0.02 * (steps > 4)}, {}

    monkeypatch.setattr(assess, "fit", fit)
    monkeypatch.setattr(trainings, "score", score)
    return done


def test_figures_become_a_curve_a_headroom_and_a_prediction(
    chains: dict[str, Chain], tmp_path: Path, trained: list[Any], capsys: pytest.CaptureFixture
) -> None:
    facts = run(chains["segmentation"], tmp_path / "assess", price_per_hour=3.6)
    assert facts["labels"] == {"few": 6, "labelled": 10, "pool": 6, "held_out": 4, "crossed": True, "measured": 6}
    assert [(each["labels"], each["draws"]) for each in facts["curve"]] == [
        (3, pytest.approx([0.5, 0.51])),
        (6, pytest.approx([0.6, 0.61])),
    ]
    assert facts["scratch"] == pytest.approx(0.605)
    assert facts["spread"] == pytest.approx(0.01 / 2**0.5)
    assert 0.05 < facts["headroom"]["double"] < 0.1, "the next doubling gains less than the last"
    longer = facts["changes"][0]
    assert (longer["name"], longer["gain"], longer["settings"]) == ("longer", pytest.approx(0.02), {"finetune.steps": 12})
    assert set(facts["prediction"]) == {"features", "labels", "mix"}
    assert facts["prediction"]["features"]["expected"] == pytest.approx(facts["headroom"]["double"] + 0.01)
    assert facts["verdict"]["expect"] == "much"
    stages = {stage["name"]: stage for stage in facts["cost"]["stages"]}
    assert list(stages) == [
        "train-teacher teacher", "distill-features features", "train-interpreter labels", "distill-labels labels",
        "train-interpreter mix", "distill-labels mix", "finetune", "evaluate",
    ]  # fmt: skip
    assert stages["finetune"]["times"] == 4
    assert facts["cost"]["price"] == pytest.approx(facts["cost"]["seconds"] / 1000)
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "assess/assess.txt").read_text()
    assert "expect much from pretraining: " in printed
    assert sorted(path.name for path in (tmp_path / "assess").iterdir()) == [
        "assess.json", "assess.txt", "curve.csv", "curve.png", "stage.json",
    ]  # fmt: skip


def test_a_stopped_assessment_goes_on_and_another_repeats_nothing(
    chains: dict[str, Chain], tmp_path: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMTEACHER_CHECKPOINTS", str(tmp_path / "checkpoints"))
    fit = assess.fit

    def killed(*args: Any, **kwargs: Any) -> Any:
        if len(trained) == 3:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(assess, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run(chains["segmentation"], tmp_path / "assess")
    assert not (tmp_path / "assess").exists()
    begun = list(trained)
    monkeypatch.setattr(assess, "fit", fit)
    monkeypatch.setattr(trainings.Trainings, "speed", lambda self: pytest.fail("the plan of the first start is kept"))
    facts = run(chains["segmentation"], tmp_path / "assess")
    assert trained[:3] == begun
    assert len(set(trained)) < len(trained), "changes of the rate have the same steps"
    points = sum(len(each["draws"]) for each in facts["curve"]) + sum(len(change["draws"]) for change in facts["changes"])
    assert len(trained) == points, "each once"
    monkeypatch.undo()
    monkeypatch.setattr(machine, "SECONDS", 0)
    monkeypatch.setenv("DREAMTEACHER_CHECKPOINTS", str(tmp_path / "checkpoints"))
    train = assess.fit

    def timed_only(*args: Any, place: Any, **kwargs: Any) -> Any:
        return train(*args, place=place, **kwargs) if "timing" in place.title else pytest.fail("it is done")

    monkeypatch.setattr(assess, "fit", timed_only)
    assert run(chains["segmentation"], tmp_path / "again", price_per_hour=1.0)["curve"] == facts["curve"]


def test_it_trains_the_way_the_chain_does(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task by the functions of its stages; no picture that is measured by is learned from, and no validation picture is read."""
    splits, read_one = set(), ImageSet.read

    def read(images: ImageSet, index: int) -> Any:
        splits.add(images.names[index].split("/")[0])
        return read_one(images, index)

    monkeypatch.setattr(ImageSet, "read", read)
    facts = run(chain, tmp_path / "assess")
    assert splits == {"train"}
    assert facts["figure"] == {"segmentation": "miou", "classification": "top1"}[chain.task]
    assert set(facts["read_out"]) == {"linear", "kNN"}
    assert 0 <= facts["floor"] < 1
    assert all(0 <= value <= 1 for each in facts["curve"] for value in each["draws"])
    assert {change["name"] for change in facts["changes"]} >= {"longer", "higher-rate", "lower-rate"}
    assert all(stage["seconds"] is not None for stage in facts["cost"]["stages"])


def test_with_all_labels_the_last_are_read_off_the_curve(chains: dict[str, Chain], tmp_path: Path, trained: list[Any]) -> None:
    facts = run(chains["segmentation"], tmp_path / "assess", few=None)
    assert (facts["labels"]["few"], facts["labels"]["measured"]) == (10, 6)
    assert facts["scratch"] > 0.605
    assert "10 labels are read off the curve, which ends at 6" in " ".join(facts["verdict"]["warnings"])


def test_held_out_parts_are_apart_and_take_turns(chain: Chain) -> None:
    images = ImageSet(chain.root / "data", "train")
    parts = [hold_out(images, draw) for draw in range(3)]
    assert is_crossed(images)
    assert sorted(index for _, held in parts for index in held) == images.labelled(), "each is held out once in three draws"
    for pool, held in parts:
        assert sorted(pool + held) == images.labelled()
        if chain.task == "classification":
            assert {images.label(index) for index in pool} == {0, 1}


def test_of_many_labels_one_part_is_held_out_for_all_draws(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageSet(chain.root / "data", "train")
    monkeypatch.setattr("dreamteacher.data.holdout.MIN_HELD_OUT", {"class": 3, "mask": 3})
    parts = [hold_out(images, draw) for draw in range(3)]
    assert parts[0] == parts[1] == parts[2]
    assert len(parts[0][1]) == {"segmentation": 3, "classification": 2}[chain.task], "three tenths, of each class"


def test_the_constant_prediction_is_that_of_the_most_frequent_class(chains: dict[str, Chain], tmp_path: Path, trained: list[Any]) -> None:
    """Blobs are 8 x 8 pixels: background everywhere is right but there, and of its two classes one is never found."""
    facts = run(chains["segmentation"], tmp_path / "assess")
    assert 0.45 < facts["floor"] < 0.5


def test_without_labels_it_says_in_one_line_what_it_can(chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageSet, "labelled", lambda images: [])
    with pytest.raises(
        UserError, match=r"no labelled train pictures.*What it costs on .* CPU core.*: train-teacher teacher \d+ s, distill-"
    ) as no:
        run(chains["segmentation"], tmp_path / "assess")
    assert "\n" not in str(no.value)
    assert "interpreter" not in str(no.value)


def test_too_few_labels_are_refused(chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="few_labels = 11, but only 10"):
        run(chains["segmentation"], tmp_path / "assess", few=11)
    labelled = ImageSet.labelled
    monkeypatch.setattr(ImageSet, "labelled", lambda images: labelled(images)[:4])
    with pytest.raises(UserError, match=r"4 labelled train pictures are too few to hold some out .*; label 6 at least"):
        run(chains["segmentation"], tmp_path / "assess", few=None)


def test_minutes_and_price_are_short_for_settings(monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> None:
    calls = []
    monkeypatch.setattr(assess, "run", lambda params, **places: calls.append((params.assess, places)) or {})
    assert cli.main(["assess", "--minutes", "2.5", "--price-per-hour", "3", "--set", "assess.draws=4"]) == 0
    (settings, places) = calls[0]
    assert (settings.minutes, settings.price_per_hour, settings.draws) == (2.5, 3.0, 4)
    assert places == {"data": Path("artifacts/data"), "out": Path("artifacts/assess"), "overwrite": False}


def test_a_stage_that_cannot_be_timed_is_named_with_the_reason(chains: dict[str, Chain], monkeypatch: pytest.MonkeyPatch) -> None:
    chain = chains["segmentation"]
    params = brief_params(chain.source, distill={"method": "spark"}, student={"backbone": "vit_tiny_patch16_224"})
    costs = {each.name: each for each in cost.stage_costs(params, ImageSet(chain.root / "data", "train"), torch.device("cpu"))}
    assert costs["distill-features features"].seconds is None
    assert "spark" in costs["distill-features features"].why.lower()
    assert costs["distill-labels mix"].why == "recipe features is not measured"
