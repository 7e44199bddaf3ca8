"""The paper's tables: each settings file runs through the chain, and its figures, budgets and sessions end up in one record."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import timm
import torch
import yaml
from tiny_chain import draw

from benchmarks.assess import compare_record
from benchmarks.paper import __main__ as paper
from benchmarks.paper import budget
from benchmarks.paper.chain import Chain
from benchmarks.paper.comparison import table
from benchmarks.paper.record import read, without_paths
from benchmarks.paper.settings import read_table, resolve, set_names, table_names
from dreamteacher.errors import UserError
from dreamteacher.settings.recipes import base_of, of_teacher
from dreamteacher.students.backbone import load_backbone
from slim_unets import slimmest

BRIEF = {"steps": 2, "batch_size": 4, "log_every": 1, "warmup_steps": 1, "precision": "fp32"}
SETTINGS = {
    "few_labels": 6,
    "label_counts": [4, None],
    "taps": [4, 8],
    "ingest": {"min_side": 8},
    "teacher": BRIEF | {"resolution": 16, "T_train": 400, "samples": 0},
    "student": {"backbone": "test_resnet", "width": 8},
    "distill": BRIEF | {"T": 10, "resolution": 32, "monitor_images": 3, "stats_images": 4, "passes": 1},
    "interpreter": BRIEF | {"T": 10, "resolution": 16, "width": 16},
    "labels": BRIEF,
    "finetune": BRIEF | {"resolution": 32},
}


@pytest.fixture(scope="module", autouse=True)
def slim_unet() -> Iterator[None]:
    with slimmest():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings file of a set of drawn blobs."""
    folder = tmp_path_factory.mktemp("blobs")
    source = draw("segmentation", folder / "pictures")
    path = folder / "blobs.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"ingest": {"min_side": 8, "source": source.name}}))
    return path


@pytest.fixture(scope="module")
def work(tiny: Path) -> Path:
    """What all sessions share."""
    return tiny.parent / "work"


def run(tiny: Path, work: Path, out: Path, name: str, *words: str) -> dict[str, Any]:
    """The record of `python -m benchmarks.paper NAME tiny WORDS`."""
    options = [name, str(tiny), "--work", str(work), "--out", str(out), *words]
    paper.main(options)
    (path,) = (out / "blobs").glob("*.json")
    return read(path)


@pytest.fixture(scope="module")
def whole(tiny: Path, work: Path) -> dict[str, Any]:
    return run(tiny, work, tiny.parent / "whole", "tab09-objectives", "--seeds", "0", "1")


def test_each_initialisation_is_measured_on_the_same_draws_and_seeds_of_the_pretraining_alternate(whole: dict[str, Any]) -> None:
    inits = read_table("tab09-objectives").groups["compare"]["inits"]
    assert list(whole["inits"]) == inits
    assert {(row["init"], row["draw"], row["pretraining"]) for row in whole["models"]} == {(i, d, d) for i in inits for d in (0, 1)}
    assert all(row["labels"] == 6 and 0 <= row["miou"] <= 1 and "linear_miou" in row for row in whole["models"])
    made = {(row["init"], row["pretraining"]): row for row in whole["pretraining"]}
    assert set(made) == {(i, seed) for i in inits[1:] for seed in (0, 1)}
    assert all(row["pictures"] == 8 and row["seconds"] > 0 for row in made.values())
    of_mse = [made["mse", seed]["explained_variance"] for seed in (0, 1)]
    assert of_mse[0] != of_mse[1]


def test_a_record_says_who_made_it_and_nothing_of_this_machines_paths(whole: dict[str, Any], tiny: Path) -> None:
    (session,) = whole["sessions"]
    assert torch.__version__.startswith(session["versions"]["torch"])
    assert session["machine"]["processor"] is not None
    assert session["command"].startswith("python -m benchmarks.paper tab09-objectives blobs.yaml --work work")
    assert str(tiny.parent) not in json.dumps(whole)
    assert without_paths("train.py --data=/a/b/c '/d/e' f/g /h") == "train.py --data=c 'e' f/g h"


def test_what_is_in_the_record_is_not_computed_again(
    whole: dict[str, Any], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Chain, "figures", lambda *_: pytest.fail("computed again"))
    again = run(tiny, tiny.parent / "work", tiny.parent / "whole", "tab09-objectives", "--seeds", "0", "1")
    assert again == whole


def test_a_session_that_ran_out_of_time_continues_to_the_same_metrics(
    whole: dict[str, Any], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("tab09-objectives", "--seeds", "0", "--only", "scratch", "mse")
    stages = []
    real = Chain._stage

    def two_stages(self: Chain, kind: str, *args: Any, **more: Any) -> Path:
        made = real(self, kind, *args, **more)
        stages.append(kind)
        if "finetuned" in stages:
            self.deadline = 0.0
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chain, "_stage", two_stages)
        with pytest.raises(SystemExit) as stop:
            run(tiny, tmp_path / "work", tmp_path / "out", *words)
    assert stop.value.code == paper.STOPPED
    assert "the same command goes on" in capsys.readouterr().err
    assert [row["init"] for row in read(tmp_path / "out/blobs/tab09-objectives.json")["models"]] == ["scratch"]
    rows = run(tiny, tmp_path / "work", tmp_path / "out", *words)["models"]
    kept = [row for row in whole["models"] if row["draw"] == 0 and row["init"] in ("scratch", "mse")]
    assert rows == kept


def test_a_dry_run_says_what_is_left_and_writes_nothing(
    whole: dict[str, Any], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tab09-objectives", str(tiny), "--seeds", "1", "2", "--only", "mse", "--dry-run", "--work", str(tmp_path / "work")]
    paper.main([*words, "--out", str(tiny.parent / "whole")])
    assert capsys.readouterr().out.splitlines()[:2] == ["to do:", "mse, 6 labels, draw 2, pretraining 0"]
    paper.main([*words, "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_another_session_adds_draws(whole: dict[str, Any], tiny: Path, work: Path, tmp_path: Path) -> None:
    """To a record of an earlier revision, too, which knew a setting less."""
    place = tmp_path / "blobs/tab09-objectives.json"
    place.parent.mkdir()
    earlier = json.loads((tiny.parent / "whole/blobs/tab09-objectives.json").read_text())
    del earlier["settings"]["finetune"]["compile"]
    place.write_text(json.dumps(earlier))
    added = run(tiny, work, tmp_path, "tab09-objectives", "--seeds", "2", "--only", "scratch")
    assert [row for row in added["models"] if row["session"] == 0] == whole["models"]
    assert [(row["init"], row["draw"]) for row in added["models"] if row["session"] == 1] == [("scratch", 2)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("finetune.steps=3", r"settings\.finetune\.steps = 2, and this is 3"),
        ("recipes.mse.distill.T=7", r"inits\.mse\.recipe\.distill\.T = None, and this is 7"),
    ],
)
def test_metrics_of_other_settings_are_refused(
    whole: dict[str, Any], tiny: Path, work: Path, change: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(tiny, work, tiny.parent / "whole", "tab09-objectives", "--set", change)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert "--as" in error


def test_equal_seconds_give_a_method_of_half_the_price_twice_the_steps_and_keep_them(
    tiny: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = []

    def price(chain: Chain, recipe: str) -> float:
        requested.append(recipe)
        return {"mse": 0.4, "at": 0.2}.get(recipe, 0.8)

    monkeypatch.setattr(budget, "seconds_per_step", price)
    words = ("--equal", "seconds", "--seeds", "0", "--only", "mse", "at", "mse-at")
    made = run(tiny, work, tmp_path, "tab09-objectives", *words)
    assert (made["equal"], made["budget"]["reference"]) == ("seconds", "mse")
    assert made["budget"]["steps"] == {"mse": 2, "at": 4, "mse-at": 1, "random-teacher": 1}
    assert {row["init"]: row["pictures"] for row in made["pretraining"]} == {"mse": 8, "at": 16, "mse-at": 4}
    assert requested == ["mse", "at", "mse-at", "random-teacher"]
    assert run(tiny, work, tmp_path, "tab09-objectives", *words) == made
    assert len(requested) == 4
    with pytest.raises(SystemExit):
        run(tiny, work, tmp_path, "tab07-distillation", *words[:2])  # label recipes have steps of another kind


def test_a_record_keeps_what_was_predicted_of_each_initialisation(tiny: Path, work: Path, tmp_path: Path) -> None:
    words = ("label-efficiency", "--seeds", "0", "1", "--labels", "6", "--only", "scratch", "features", "--assess", "0.2")
    content = run(tiny, work, tmp_path, *words)
    (assessment,) = content["assessments"]
    assert (assessment["labels"], assessment["budget"]["seeds"]) == (6, 2)
    assert set(assessment["prediction"]) == {"features", "random-teacher"}
    (row,) = compare_record(content)
    figures = {init: [model["miou"] for model in content["models"] if model["init"] == init] for init in ("scratch", "features")}
    assert row["gain"] == pytest.approx(fmean(figures["features"]) - fmean(figures["scratch"]))
    assert row["predicted"] == assessment["prediction"]["features"]["expected"] and row["labels"] == 6
    assert run(tiny, work, tmp_path, *words) == content  # nothing is assessed again


def test_a_step_is_timed_by_the_real_loop(tiny: Path, work: Path) -> None:
    params, _ = resolve(read_table("baselines"), str(tiny), None, [])
    assert 1e-4 < budget.seconds_per_step(Chain(params, work, {}), "simclr") < 10


def test_a_learning_curve_has_every_number_of_labels(tiny: Path, work: Path, tmp_path: Path) -> None:
    made = run(tiny, work, tmp_path, "label-efficiency", "--seeds", "0", "--only", "scratch", "features")
    assert {(row["init"], row["labels"]) for row in made["models"]} == {(i, k) for i in ("scratch", "features") for k in (4, None)}
    assert [line[1] for line in table(made)[1:]] == ["4", "4", "all", "all"]
    assert made["data"]["labelled"] == 10


PROGRAM = """
import pickle, shutil, sys
from pathlib import Path
data, out, weights, how = sys.argv[1:]
assert len(list(Path(data).glob("*.png"))) == 14
if how == "fails": sys.exit(3)
if how == "pickle": (Path(out) / "model.pt").write_bytes(pickle.dumps(Path(out)))
elif how != "nothing": shutil.copy(weights, Path(out) / "model.pt")
"""


def external(tmp_path: Path, how: str) -> str:
    """A program that leaves timm weights of the student; `how` says what it does instead."""
    (tmp_path / "program.py").write_text(PROGRAM)
    model = timm.create_model("test_vit" if how == "other" else "test_resnet", num_classes=3)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pt")
    return f"mine={sys.executable} {tmp_path / 'program.py'} {{data}} {{out}} {tmp_path / 'weights.pt'} {how}"


def test_a_program_of_others_is_compared_by_the_weights_that_it_leaves(tiny: Path, work: Path, tmp_path: Path) -> None:
    made = run(
        tiny, work, tmp_path, "tab09-objectives", "--seeds", "0", "--only", "scratch", "mine", "--external", external(tmp_path, "good")
    )
    assert {row["init"] for row in made["models"]} == {"scratch", "mine"}
    assert made["inits"]["mine"]["command"].endswith("program.py {data} {out} weights.pt good")
    assert [row["seconds"] > 0 for row in made["pretraining"]] == [True]
    (folder,) = [path for path in (work / "blobs/external").iterdir() if path.is_dir()]
    expected = torch.load(tmp_path / "weights.pt", weights_only=True)["state_dict"]
    found = load_backbone(folder / "backbone").model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("fails", "ended with exit code 3"),
        ("nothing", "left no weights"),
        ("pickle", "holds no plain weights"),
        ("other", r"does not fit student.backbone = 'test_resnet'"),
        ("{place}", "'place' is no place"),
        ("{seconds}", "{seconds} needs --equal seconds"),
    ],
)
def test_a_program_that_leaves_no_such_weights_is_refused_in_a_line(
    tiny: Path, work: Path, tmp_path: Path, how: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(tiny, work, tmp_path, "tab09-objectives", "--seeds", "0", "--only", "mine", "--external", external(tmp_path, how))
    assert stop.value.code == 2
    error = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert words in error


@pytest.mark.parametrize("name", table_names())
@pytest.mark.parametrize("data_set", set_names())
def test_each_table_has_possible_settings_on_each_set_and_a_random_teacher(name: str, data_set: str) -> None:
    described = read_table(name)
    params, counts = resolve(described, data_set, None, [])
    assert {"scratch", described.control} <= set(params.compare.inits)
    assert params.teachers[params.recipes[base_of(params, described.control)].teacher]["kind"] == "random"
    assert counts[-1] is None
    kinds = {teacher: of_teacher(params, teacher).teacher.kind for teacher in params.teachers}
    assert all(kinds[teacher] == teacher for teacher in kinds if teacher in ("ddpm", "edm", "stylegan2", "random", "pixels"))
    assert not described.paper or set(described.paper["rows"]) <= set(params.compare.inits)


@pytest.mark.parametrize("name", sorted({*table_names()} - {"tab09-objectives", "label-efficiency"}))
def test_each_table_runs(name: str, tiny: Path, work: Path, tmp_path: Path) -> None:
    larger = ("--set", "distill.resolution=64", "--set", "teacher.resolution=32")  # for spark's cells and stylegan2's levels
    made = run(tiny, work, tmp_path, name, "--seeds", "0", *(larger if name in ("baselines", "tab06-teachers") else ()))
    assert [line[0] for line in table(made)[1:]] == read_table(name).groups["compare"]["inits"]


def test_what_is_set_is_checked_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"recipes\.t350: distill\.T = 350 must be below teacher\.T_train = 300"):
        resolve(read_table("tab11-steps"), "nuclei", None, ["teacher.T_train=300"])


def test_a_set_without_settings_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match="no set 'cityscapes'; name one of bccd, camvid"):
        resolve(read_table("baselines"), "cityscapes", None, [])
