"""The self-contained report: whether pretraining helps, what is missing, and the cost."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from dreamteacher import cli
from dreamteacher.data.drawing import draw_boxes
from dreamteacher.errors import UserError
from dreamteacher.report import page as page_module
from dreamteacher.report import verdict
from dreamteacher.report.floor import constant_prediction
from dreamteacher.report.paired import gain_over
from dreamteacher.settings.schema import Params
from dreamteacher.stage import read_stage
from dreamteacher.stages import report
from dreamteacher.tracking import UNSENT
from made_up_run import BAD, BAD_FILE, FIGURES, Maker, settings


class Words(HTMLParser):
    """The text of a page, the addresses that it names, and its elements."""

    def __init__(self, page: str):
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.parts: list[str] = []
        self.feed(page)
        self.text = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("td", "th", "dt", "dd", "li"):
            self.parts.append(" ")
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action", "data")]

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1] != "style":
            self.parts.append(data)


def written(params: Params | None = None) -> Words:
    report.run(params or settings(), artifacts=Path("artifacts"), out=Path("artifacts/report"), overwrite=True)
    return Words(Path("artifacts/report/report.html").read_text())


@pytest.fixture
def maker(in_tmp: Path) -> Maker:
    return Maker(in_tmp / "artifacts")


def test_the_page_of_a_whole_run_shows_all_of_it(maker: Maker) -> None:
    maker.whole()
    page = written()
    low, high = ttest_rel(FIGURES["features"], FIGURES["scratch"]).confidence_interval(0.95)
    gain = f"+10.3 points, 95 % interval +{100 * low:.1f} to +{100 * high:.1f}"
    for words in (
        "Pretraining helps: features gains 10.3 points of mIoU over training from scratch",
        f"features: {gain} (mIoU, 3 paired draws of labels and weights)",
        "1 of 2 pretrained initialisations gain",
        "its interval is not corrected for this selection",
        "A constant prediction (“background” everywhere) scores 45.0",
        f"linear probe of features: {gain} over random weights – gain",
        "no gain beyond the spread",
        "the interpreter of mix reaches 54.0 mIoU on crops: less than training from scratch, so expect little",
        "43.0 %",  # explained variance, that within pictures, and that of each tap
        "21.0 %",
        "recipe stride 8 stride 16 features 50.0 % 36.0 %",
        "not a picture",
        "The first 2 of 2 refused pictures",
        "of computation on cpu",
    ):
        assert words in page.text, words
    assert "This run is incomplete" not in page.text
    assert page.tags.count("img") == 5 + 1 + 1  # overlays, maps, samples
    assert page.tags.count("svg") == 2 + 1 + 2 + 1  # results, fine-tuning, pretraining, teacher


COLOURS = r'<i style="background: (#[0-9a-f]{6})"></i>([^<]*)</span>'  # of a class, and its name


def test_what_the_colours_of_predictions_mean_is_reported(maker: Maker) -> None:
    maker.whole()
    written()
    assert re.findall(COLOURS, Path("artifacts/report/report.html").read_text()) == [("#1f77b4", "cell")]


def test_the_legend_of_boxes_has_the_drawn_colours_for_any_names_and_number_of_classes(in_tmp: Path) -> None:
    names = ("background", *(f"kind {i}" for i in range(299)))
    Maker(in_tmp / "artifacts", "detection", names).whole()
    written()
    found = re.findall(COLOURS, Path("artifacts/report/report.html").read_text())
    drawn = draw_boxes(np.zeros((600, 600, 3), np.uint8), np.array([[10, 10, 50, 50], [100, 100, 150, 150]]), np.array([0, 1]))
    assert found[:2] == [(f"#{drawn[place, place].tobytes().hex()}", name) for place, name in ((10, "background"), (100, "kind 0"))]
    assert len(found) == 50


def test_a_distillation_that_learnt_nothing_is_reported(maker: Maker) -> None:
    maker.whole()
    assert "nothing has been distilled" not in written().text
    maker.recipe(explained=-12.8)
    assert "The student of features predicts the teacher’s features no better than their mean" in written().text


def test_the_page_loads_nothing_and_runs_nothing(maker: Maker) -> None:
    maker.whole()
    page = written()
    assert "script" not in page.tags and "link" not in page.tags
    assert {address.partition(":")[0] if address.startswith("data:") else address[0] for address in page.addresses} == {"data", "#"}
    content = Path("artifacts/report/report.html").read_text()
    assert set(re.findall(r"url\((.)", content)) <= {"#"}
    assert "@import" not in content and "http" not in content
    ids = re.findall(r' id="([^"]*)"', content)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("task", ["segmentation", "classification", "detection"])
def test_what_users_named_is_text(in_tmp: Path, task: str) -> None:
    Maker(in_tmp / "artifacts", task, (BAD, "b")).whole()
    page = written()
    assert BAD in page.text and BAD_FILE in page.text
    assert "script" not in page.tags
    assert "<img src=x" not in Path("artifacts/report/report.html").read_text()


def test_the_figures_of_the_verdict_are_the_stages_metrics(maker: Maker) -> None:
    maker.whole()
    written()
    metrics = read_stage(Path("artifacts/report"))["metrics"]
    gain = gain_over([{"init": i, "seed": s, "miou": v} for i, of in FIGURES.items() for s, v in enumerate(of)], "miou", "mix", "scratch")
    assert gain and gain.verdict == "no gain beyond the spread"
    assert (metrics["mix_gain"], metrics["mix_gain_half"]) == pytest.approx((gain.mean, gain.half))
    assert metrics["missing"] == 0


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"scratch": (0.6, 0.6), "features": (0.5, 0.51)}, "Loss: training from scratch is better than every pretrained initialisation"),
        ({"scratch": (0.6, 0.7), "features": (0.7, 0.6)}, "No gain beyond the spread of the seeds"),
        ({"scratch": (0.6,), "features": (0.7,)}, "One seed: no interval, no verdict"),
        ({"scratch": (0.6, 0.7), "features": (0.62, 0.72)}, "Equal gains: no interval, no verdict"),
        ({"features": (0.6, 0.7)}, "The comparison lacks training from scratch; add scratch to compare.inits"),
        ({"scratch": (0.6, 0.7)}, "The comparison lacks a pretrained backbone"),
        ({"scratch": (0.6, 0.7), "imagenet": (0.8, 0.91)}, "The comparison lacks a pretrained backbone"),
        ({"scratch": (0.4, 0.41), "features": (0.6, 0.61)}, "scores 45.0. Not above it: scratch"),
    ],
)
def test_the_verdict_is_in_words(maker: Maker, figures: dict[str, tuple[float, ...]], words: str) -> None:
    maker.data()
    maker.compared(figures)
    assert words in written().text


def test_a_run_without_labels_ends_with_backbones_and_lacks_nothing(in_tmp: Path) -> None:
    maker = Maker(in_tmp / "artifacts", task=None)
    for make in (maker.data, maker.teacher, maker.recipe):
        make()
    page = written()
    assert "Pretrained, not compared" in page.text
    assert "The pictures have no labels, so the run ends with pretrained backbones" in page.text
    assert "This run is incomplete" not in page.text
    assert "43.0 %" in page.text and "Teacher own" in page.text


def unlabelled(**changes: Any) -> Params:
    """Settings of recipes that are compared with nothing."""
    return settings(label_recipes={}, compare={"inits": ["scratch"]}, export={"init": "scratch"}, **changes)


def test_a_run_without_a_teacher_says_so(maker: Maker) -> None:
    maker.data()
    maker.recipe("simclr", "simclr", None)
    params = unlabelled(recipes={"simclr": {"teacher": "none", "distill": {"method": "simclr"}}})
    page = written(params)
    assert "There is no teacher in this run." in page.text
    assert "train-teacher" not in page.text
    assert "simclr simclr none resnet18" in page.text


CONTROLLED = {"scratch": (0.60, 0.66, 0.57), "random-teacher": (0.62, 0.67, 0.60), "features": (0.71, 0.75, 0.68)}
WITH_CONTROL = {
    "teachers": {"own": {}, "random": {"kind": "random"}},
    "recipes": {"features": {"teacher": "own"}, "random-teacher": {"teacher": "random"}},
    "compare": {"inits": ["scratch", "random-teacher", "features"]},
    "label_recipes": {},
    "export": {"init": "features"},
}


def test_gains_over_a_control_are_shown_and_the_control_is_no_result(maker: Maker) -> None:
    maker.data()
    for name, kind in (("own", "ddpm"), ("random", "random")):
        maker.teacher(name, kind)
    maker.recipe()
    maker.recipe("random-teacher", teacher="random")
    maker.compared(CONTROLLED)
    page = written(settings(**WITH_CONTROL))
    assert "Over the control random-teacher, whose teacher is not trained: +8.3 points, 95 % interval +6.9 to +9.8 – gain." in page.text
    assert "of 2 pretrained initialisations" not in page.text
    assert "verdict over control" in page.text and "+8.3 ± 1.4" in page.text
    maker.compared({**CONTROLLED, "random-teacher": (0.91, 0.95, 0.88)})  # the best of all, and still no result
    page = written(settings(**WITH_CONTROL))
    assert "features gains 10.3 points of mIoU over training from scratch, but not over the control" in page.text
    assert "Pretraining helps" not in page.text
    maker.compared({name: CONTROLLED[name] for name in ("scratch", "random-teacher")})
    assert "The comparison lacks a pretrained backbone of a trained teacher." in written(settings(**WITH_CONTROL)).text


def test_every_recipe_of_an_untrained_teacher_is_a_control(maker: Maker) -> None:
    maker.data()
    for name, kind in (("own", "ddpm"), ("random", "random"), ("copy", "pixels")):
        maker.teacher(name, kind)
        maker.recipe(name, teacher=name)
    maker.compared({"scratch": (0.60, 0.66, 0.57), "own": (0.7, 0.7, 0.6), "copy": (0.8, 0.9, 0.8), "random-mix": (0.9, 0.9, 0.9)})
    params = settings(
        teachers={"own": {}, "random": {"kind": "random"}, "copy": {"kind": "pixels"}},
        recipes={name: {"teacher": name} for name in ("own", "random", "copy")},
        label_recipes={"random-mix": {"features": "random"}},
        compare={"inits": ["scratch", "own", "copy", "random-mix"]},
        export={"init": "own"},
    )
    run = report.read_run(params, Path("artifacts"))
    assert run.controls == ["copy", "random-mix"]
    assert "pretrained initialisations gain" not in written(params).text


def test_the_time_of_a_model_is_that_of_its_stages_and_empty_where_one_is_not_on_record(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker.whole()
    seconds = {"distill-features": 90.0, "train-interpreter": 20.0, "distill-labels": 30.0, "finetune": 15.0}
    monkeypatch.setattr(verdict, "clock_of", lambda stage, digest: {"seconds": seconds[stage]})
    run = report.read_run(settings(), Path("artifacts"))
    table = verdict.comparison(run)["table"]
    times = {row[0]: row[-1] for row in table.rows}
    assert times == {"scratch": "15.0 s", "features": "1 min 45 s", "mix": "2 min 35 s", "constant prediction": ""}
    monkeypatch.setattr(verdict, "clock_of", lambda stage, digest: {"seconds": 15.0} if stage == "finetune" else {})
    assert [row[-1] for row in verdict.comparison(run)["table"].rows] == ["15.0 s", "", "", ""]


def test_several_teachers_and_recipes_each_have_their_place(maker: Maker) -> None:
    maker.data()
    for name in ("own", "other"):
        maker.teacher(name)
        maker.recipe(f"from-{name}", teacher=name)
    recipes = {f"from-{name}": {"teacher": name} for name in ("own", "other")}
    params = unlabelled(teachers={"own": {}, "other": {}}, recipes=recipes)
    page = written(params)
    assert "Teacher own" in page.text and "Teacher other" in page.text
    assert "from-other features other resnet18" in page.text


def test_a_recipe_of_a_team_shows_all_teachers_that_there_are(maker: Maker) -> None:
    maker.data()
    for name in ("own", "other"):
        maker.teacher(name)
    page = written(unlabelled(teachers={"own": {}, "other": {}}, recipes={"team": {"teacher": ".", "distill": {"method": "team"}}}))
    assert "Teacher own" in page.text and "Teacher other" in page.text
    assert "backbones/team is missing" in page.text


def test_what_is_missing_is_named_with_its_command(maker: Maker) -> None:
    maker.data()
    page = written()
    assert "This run is incomplete." in page.text
    assert "teachers/own is missing: dreamteacher train-teacher --name own" in page.text
    assert "more are missing; dreamteacher repro makes them all" in page.text
    assert "No backbone was pretrained" in page.text
    assert "The fine-tuned models have not been compared; dreamteacher evaluate does that." in page.text
    with pytest.raises(UserError, match="nowhere holds no complete output of a stage"):
        report.run(settings(), artifacts=Path("nowhere"), out=Path("out"))


def test_models_that_are_others_than_were_compared_are_named(maker: Maker) -> None:
    maker.whole()
    maker.output("finetuned/mix/1", "finetune", {"init": "mix", "seed": 1, "finetune": {"steps": 81}}, {}, {}, "data")
    assert "finetuned/mix/1 has changed since the comparison; dreamteacher evaluate --overwrite makes it anew" in written().text


@pytest.mark.parametrize("passed", [True, False])
def test_a_retraining_shows_drift_and_gates(maker: Maker, passed: bool) -> None:
    maker.whole()
    maker.retrained(passed)
    page = written()
    assert "40 pictures are new, 100 were known, 0 are gone." in page.text
    assert re.search(r"brightness\s*0\.3\s*0\.5\s*1\.20\s*0\.10\s*yes", page.text)
    assert f"Gates {'passed' if passed else 'refused'}" in page.text
    assert "Compared with champion version 3." in page.text


def test_what_was_predicted_stands_beside_what_came(maker: Maker) -> None:
    maker.whole()
    maker.assessed()
    page = written()
    assert "expect much from pretraining. Reasons: 20 labels reach 61" in page.text
    assert re.search(r"scratch\s*61\.2\s*61\.0", page.text)
    assert re.search(r"features\s*\+5\.0\s*\+0\.0 to \+12\.0\s*\+10\.3 points, .*?\s*yes", page.text)
    assert re.search(r"mix\s*\+5\.0\s*\+2\.0 to \+12\.0\s*\+0\.3 points, .*?\s*no", page.text)
    assert re.search(r"finetune\s*1 min 15 s\s*\d+\.\d s", page.text)
    assert "8 more labels: +3.1 points" in page.text


def test_where_no_time_is_on_record_the_page_says_so(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    maker.data()
    assert "No time is recorded" not in written().text
    monkeypatch.setenv("DREAMTEACHER_CHECKPOINTS", "elsewhere")
    assert "No time is recorded here for data" in written().text


def test_a_page_leaves_out_pictures_before_it_becomes_too_large(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    maker.whole()
    written()
    whole = Path("artifacts/report/report.html").stat().st_size
    monkeypatch.setattr(page_module, "MAX_PICTURE_BYTES", 60_000)
    page = written()
    assert Path("artifacts/report/report.html").stat().st_size < whole
    assert "Omitted, because the page would become too large: " in page.text
    assert page.tags.count("img") > 0


def test_mlflow_gets_the_page(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    maker.data()
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "later")
    written()
    (records,) = UNSENT.glob("report-*/records.jsonl")
    kept = [json.loads(line) for line in records.read_text().splitlines()]
    files = [records.parent / record["file"] for record in kept if record["do"] == "artifact"]
    assert [file.name for file in files] == ["report.html", "stage.json"]
    assert files[0].read_text() == Path("artifacts/report/report.html").read_text()


def test_the_command_needs_nothing_but_the_folder(maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    maker.whole()
    Path("params.yaml").write_text("few_labels: 8\n")
    assert cli.main(["report"]) == 0
    assert "features_gain = 0.103333" in capsys.readouterr().out
    assert cli.main(["report"]) == 0  # nothing has changed


COUNTS = {"train": {"a": 5, "b": 50}, "val": {"a": 60, "b": 30, "c": 10, "d": 0}}


@pytest.mark.parametrize(
    ("figure", "value", "words"),
    [("top1", 0.3, "always “b”"), ("miou", 0.1, "“b” everywhere"), ("ap", 0.0, "no box at all"), ("rmse", None, "")],
)
def test_the_floor_is_that_of_the_most_frequent_training_class(figure: str, value: float | None, words: str) -> None:
    floor = constant_prediction(figure, {"labels_per_class_and_split": COUNTS})
    assert (floor.value, floor.words) == (pytest.approx(value), words) if floor else value is None
    assert constant_prediction("miou", {}) is None
