"""docs/results.md says what the records of figures hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from benchmarks import results
from benchmarks.paper.comparison import by_pretraining, of_labels, order, table
from benchmarks.paper.plots import draw, is_drawn
from benchmarks.paper.record import to_json
from benchmarks.paper.settings import read_table
from dreamteacher.report.paired import gain_over
from helpers import PROJECT

FIGURES = {
    "scratch": [0.60, 0.70, 0.50, 0.61],
    "mse-at": [0.66, 0.75, 0.57, 0.66],
    "mse": [0.65, 0.76, 0.54, 0.66],
    "at": [0.60, 0.69, 0.51, 0.5964],
    "random-teacher": [0.61, 0.70, 0.50, 0.62],
}
SESSION = {
    "machine": {"device": "x86_64 CPU, 1 threads", "processor": "Some CPU"},
    "versions": {"torch": "2.15.0"},
    "commit": "0123456789",
    "command": "python -m benchmarks.paper tab09-objectives blobs",
    "first": "2026-11-27",
    "last": "2026-11-28",
}


def record(figures: dict[str, list[float]] = FIGURES, labels: tuple[int | None, ...] = (20,)) -> dict[str, Any]:
    return {
        "table": "tab09-objectives",
        "set": "blobs",
        "figure": "miou",
        "control": "random-teacher",
        "equal": "pictures",
        "data": {"labelled": 100},
        "inits": {init: {} for init in figures},
        "sessions": [SESSION],
        "pretraining": [{"init": "mse", "pretraining": seed, "pictures": 4800.0, "seconds": 30.0 + 2 * seed} for seed in (0, 1)],
        "models": [
            {"init": init, "labels": count, "draw": number, "pretraining": number % 2, "miou": value, "linear_miou": value / 2}
            for init, values in figures.items()
            for count in labels
            for number, value in enumerate(values)
        ],
    }


def test_the_page_of_results_is_up_to_date_and_its_plots_are_there() -> None:
    text = results.page(results.RESULTS, PROJECT / "docs")
    assert text == (PROJECT / "docs/results.md").read_text(), "run `python -m benchmarks.results`"
    assert all(path.with_suffix(".svg").exists() == is_drawn(results.read(path)) for path in results.records(results.RESULTS))
    assert (results.RESULTS / results.PLOT).exists() == bool(results.predicted(results.RESULTS))


def test_a_gain_is_that_over_the_same_draws_with_the_interval_of_students_t() -> None:
    gain = gain_over(of_labels(record(), 20), "miou", "mse", "scratch")
    interval = ttest_rel(FIGURES["mse"], FIGURES["scratch"]).confidence_interval(0.95)
    assert gain
    assert (gain.mean - gain.half, gain.mean + gain.half) == pytest.approx((interval.low, interval.high))


def test_draws_that_one_of_the_two_lacks_do_not_count() -> None:
    content = record()
    content["models"] = [row for row in content["models"] if (row["init"], row["draw"]) != ("mse", 1)]
    gain = gain_over(of_labels(content, 20), "miou", "mse", "scratch")
    assert gain
    assert gain.pairs == 3
    assert gain.mean == pytest.approx((0.05 + 0.04 + 0.05) / 3)


def test_the_table_has_a_line_for_each_initialisation() -> None:
    lines = table(record())
    assert lines[0][:5] == ["", "labels", "mIoU", "over scratch", "over random-teacher"]
    assert lines[1] == ["scratch", "20", "60.2 ± 8.2", "", "−0.5 ± 0.9", "30.1 ± 4.1", "4", "", ""]
    assert lines[3] == ["mse", "20", "65.2 ± 9.0", "+5.0 ± 1.3", "+4.5 ± 1.6", "32.6 ± 4.5", "4", "4,800", "31"]


def test_each_pair_of_the_papers_order_is_re_established_refuted_or_within_noise() -> None:
    paper = read_table("tab09-objectives").paper
    assert paper
    sentence = order(record(), paper, 20)
    assert sentence.startswith(
        "The paper's order (BDD100K instances, box AP (100 epochs): mse-at 25.0, mse 23.6, at 22.3) is re-established in"
    )
    assert "mse-at over mse: paper +1.4, here +0.7 ± 2.7 (within noise)" in sentence
    assert "mse-at over at: paper +2.7, here +6.1 ± 0.3 (re-established)" in sentence
    turned = record(FIGURES | {"at": [value + 0.1 + i / 1000 for i, value in enumerate(FIGURES["mse-at"])]})
    assert "is refuted in part" in order(turned, paper, 20)
    assert "(refuted)" in order(turned, paper, 20)
    assert order(record({"scratch": FIGURES["scratch"]}), paper, 20) == ""


def test_the_gain_of_each_seed_of_the_pretraining_is_shown() -> None:
    assert by_pretraining(record(), 20)[1] == "mse +4.5, +5.5"


def test_a_section_names_command_machine_date_commit_and_its_written_sentence(tmp_path: Path) -> None:
    place = tmp_path / "results/blobs"
    place.mkdir(parents=True)
    (place / "tab09-objectives.json").write_text(to_json(record()))
    (place / "notes.yaml").write_text("tab09-objectives: The sum is as good as its first term.\n")
    (place / "other.json").write_text("{}")
    results.main(["--results", str(tmp_path / "results"), "--page", str(tmp_path / "results.md")])
    text = (tmp_path / "results.md").read_text()
    for words in (
        "## blobs", "### Tab 9, objectives", "The sum is as good as its first term.", "2026-11-27 to 2026-11-28", "commit 0123456789",
        "`python -m benchmarks.paper tab09-objectives blobs`", "x86_64 CPU, 1 threads (Some CPU), torch 2.15.0",
        "](results/blobs/tab09-objectives.svg)",
    ):  # fmt: skip
        assert words in text, words
    assert (place / "tab09-objectives.svg").exists()


@pytest.mark.parametrize("labels", [(20,), (5, 20, None)])
def test_a_plot_has_the_same_bytes_each_time(tmp_path: Path, labels: tuple[int | None, ...]) -> None:
    for name in ("one", "two"):
        draw(record(labels=labels), tmp_path / name)
    one = (tmp_path / "one").read_bytes()
    assert one == (tmp_path / "two").read_bytes()
    assert b"random-teacher" in one


def test_a_result_of_another_name_has_it_in_its_heading(tmp_path: Path) -> None:
    for name in ("tab09-objectives", "short"):
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / f"blobs/{name}.json").write_text(to_json(record()))
    headings = [line for line in results.page(tmp_path, tmp_path).splitlines() if line.startswith("### ")]
    title = read_table("tab09-objectives").title
    assert headings == [f"### {title}, short", f"### {title}"]


def test_predicted_gains_stand_beside_those_that_were_measured(tmp_path: Path) -> None:
    prediction = {init: {"low": 0.01, "expected": 0.04, "high": 0.07} for init in ("mse-at", "mse", "at", "random-teacher")}
    (tmp_path / "blobs").mkdir()
    content = record() | {"assessments": [{"labels": 20, "figure": "miou", "prediction": prediction}]}
    (tmp_path / "blobs/label-efficiency.json").write_text(to_json(content))
    text = results.page(tmp_path, tmp_path)
    assert "2 of 3 are right in sign" in text and "2 lie between the predicted bounds" in text
    assert "| blobs   | 20     | mse    | +4.0      | +1.0 | +7.0 | +5.0     |" in text
    assert "![predicted and measured gains](assess.svg)" in text
    results.main(["--results", str(tmp_path), "--page", str(tmp_path / "results.md")])
    assert "random-teacher" not in (tmp_path / "assess.svg").read_text()
