"""Learning curve, plan, prediction and text of an assessment, on metrics with known answers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dreamteacher.assessment.changes import Change, changes, shortened, with_settings
from dreamteacher.assessment.curve import Curve, fit
from dreamteacher.assessment.plan import Point, Speed, curve_sizes, make_plan
from dreamteacher.assessment.prediction import expectation, predict, realised, seeds_to_show, to_json
from dreamteacher.assessment.verdict import points, text, verdict
from dreamteacher.project.cost import rough_duration
from dreamteacher.settings.schema import Params

STEEP = Curve(0.9, 1.0, 0.5)  # 20 labels: 67.6, 40: 74.2
LEVEL = Curve(0.84, 0.4, 1.0)  # 20 labels: 82.0, 40: 83.0, 160: 83.75
QUICK = Speed(step=0.1, score=2.0, start=1.0)
TRIED = {
    "longer": Change("3 times the steps", {"finetune.steps": 480}, 3.0),
    "rate": Change("3 times the rate", {"finetune.lr": 6e-3}, 1.0),
}


@pytest.mark.parametrize("true", [STEEP, LEVEL, Curve(1.0, 0.8, 0.3)], ids=["steep", "level", "slow"])
def test_a_power_law_is_found_again(true: Curve) -> None:
    fitted = fit({n: (true.at(n), 0.001) for n in (10, 20, 40, 80, 434)})
    for n in (10, 20, 40, 160, 434):
        assert fitted.at(n) == pytest.approx(true.at(n), abs=0.006)


def test_a_curve_never_falls_and_never_passes_one() -> None:
    falling = fit({10: (0.8, 0.01), 20: (0.78, 0.01), 40: (0.77, 0.01)})
    assert falling.at(1000) == falling.at(10) == pytest.approx(0.783, abs=0.001)
    assert falling.labels_for(0.9) == math.inf
    rising = fit({10: (0.5, 0.01), 20: (0.8, 0.01), 40: (0.99, 0.01)})
    assert rising.ceiling == 1.0
    assert rising.at(10**6) <= 1.0


def test_two_points_are_extended_with_caution() -> None:
    curve = fit({10: (0.6, 0.01), 20: (0.7, 0.01)})
    assert 0.05 < curve.at(40) - curve.at(20) < 0.1, "the next doubling gains less than the last"


def test_labels_that_a_gain_is_worth_are_read_off_the_curve() -> None:
    assert STEEP.labels_for(STEEP.at(40)) == pytest.approx(40)


@pytest.mark.parametrize(
    ("few", "pool", "least", "numbers"),
    [
        (20, 434, 2, [10, 20, 40, 80, 434]),
        (434, 434, 2, [108, 217, 434]),
        (20, 22, 2, [10, 20, 22]),
        (2, 300, 3, [2, 4, 8, 300]),
        (12, 12, 3, [3, 6, 12]),
    ],
)
def test_the_curve_has_points_on_both_sides_of_the_few_labels(few: int, pool: int, least: int, numbers: list[int]) -> None:
    assert curve_sizes(few, pool, least) == numbers


def test_a_plan_is_as_rich_as_its_minutes() -> None:
    made = {minutes: make_plan(20, [10, 20, 40], 3, TRIED, QUICK, steps=100, seconds=60 * minutes) for minutes in (1.5, 2, 30)}
    assert {point.change for point in made[30].points} == {"", "longer", "rate"}
    assert [point for point in made[30].points if not point.change] == [Point(n, draw) for draw in range(3) for n in (10, 20, 40)]
    assert made[30].steps == made[2].steps == 100
    assert len(made[2].points) < len(made[30].points)
    assert made[2].seconds <= 120
    assert made[1.5].steps < 100, "shorter trainings where even the fewest do not fit"
    assert made[1.5].seconds <= 90 < made[1.5].needed
    assert any(point.change == "longer" for point in made[1.5].points), "whether the steps suffice is always asked"


def test_hopeless_minutes_still_train_a_little() -> None:
    assert make_plan(20, [10, 20], 2, TRIED, Speed(10, 10), steps=1000, seconds=1).steps == 50


def test_larger_crops_are_tried_where_pictures_are_larger() -> None:
    params = Params()
    assert changes(params, 256, True)["larger-crops"].settings == {"finetune.resolution": 128}
    assert changes(params, 256, True)["larger-crops"].cost == 4
    assert "larger-crops" not in changes(params, 64, True)
    assert "neck" not in changes(params, 256, False)
    changed = with_settings(params, changes(params, 256, True)["neck"].settings)
    assert (changed.student.neck, params.student.neck) == ("pafpn", "fpn-ppm")


def test_a_shorter_training_warms_up_as_large_a_share() -> None:
    params = with_settings(Params(), {"finetune.steps": 1000, "finetune.warmup_steps": 100})
    assert (shortened(params, 50).finetune.steps, shortened(params, 50).finetune.warmup_steps) == (50, 5)


def test_a_shorter_training_is_not_compiled() -> None:
    assert not shortened(with_settings(Params(), {"finetune.compile": True}), 50).finetune.compile


def test_a_steep_curve_promises_much_and_a_level_one_little_or_nothing() -> None:
    of = {"longer": 0.0, "spread": 0.01, "seeds": 3}
    steep, level = (predict(curve, 20, "recipe", **of) for curve in (STEEP, LEVEL))
    assert steep.expected == pytest.approx(STEEP.at(40) - STEEP.at(20))
    assert expectation(steep) == "much"
    assert steep.labels == pytest.approx(20), "a gain of one doubling is worth as many labels again"
    assert (level.expected, expectation(level)) == (pytest.approx(0.01), "little")
    assert expectation(predict(Curve(0.84, 0.1, 1.0), 20, "recipe", **of)) == "nothing"
    assert expectation(predict(Curve(0.8, 0.0, 0.5), 20, "recipe", **of)) == "nothing"
    noise = 2 * 0.7 * 0.01 / math.sqrt(3)
    assert (level.low, level.high) == (pytest.approx(-noise), pytest.approx(LEVEL.at(160) - LEVEL.at(20) + noise))


def test_a_training_that_is_too_short_leaves_a_head_start() -> None:
    longer = predict(LEVEL, 20, "recipe", longer=0.04, spread=0.0, seeds=3)
    assert longer.expected == pytest.approx(0.01 + 0.02)
    assert predict(LEVEL, 20, "recipe", longer=-0.04, spread=0.0, seeds=3).expected == pytest.approx(0.01)


def test_a_small_gain_among_large_spreads_needs_many_seeds() -> None:
    assert seeds_to_show(0.05, 0.129) == 14
    assert seeds_to_show(0.05, 0.01) == 2


def facts(curve: Curve = LEVEL, few: int = 20, longer: float = 0.0, **budget: Any) -> dict[str, Any]:
    made = predict(curve, few, "recipe", longer=longer, spread=0.012, seeds=3)
    now = curve.at(few)
    return {
        "figure": "miou",
        "title": "mIoU",
        "labels": {"few": few, "labelled": 534, "pool": 434, "held_out": 100, "crossed": False, "measured": few},
        "budget": {"steps": 160, "full": 160, "draws": 3, "minutes": 10.0, "needed_minutes": 8.4, "seeds": 3} | budget,
        "floor": 0.42,
        "read_out": {"linear": (0.75, 0.011)},
        "curve": [{"labels": n, "mean": curve.at(n), "std": 0.012} for n in (10, 20, 434)],
        "scratch": now,
        "headroom": {"all": curve.at(434) - now, "double": curve.at(40) - now, "more": curve.at(160) - now},
        "spread": 0.012,
        "changes": [{"name": "longer", "words": "3 times the steps", "settings": {"finetune.steps": 480}, "mean": now + longer,
                     "gain": longer, "error": 0.001}],
        "prediction": {"features": to_json(made)},
        "cost": {"machine": "2 CPU cores", "seconds": 700.0, "price": 0.1,
                 "stages": [{"name": "finetune", "seconds": 700.0, "times": 9, "why": ""},
                            {"name": "x", "seconds": None, "times": 1, "why": "so"}]},
    }  # fmt: skip


def test_the_verdict_says_why_and_what_would_help_more() -> None:
    result = verdict(facts())
    assert result["expect"] == "little"
    assert result["words"].startswith(
        "expect little from pretraining: +1.0 mIoU points over scratch by features, as much as 20 more labels ("
    )
    assert result["because"][0] == "from scratch 20 labels reach 82.0 and 434 reach 83.9: labels can gain 1.9 points"
    assert result["because"][1] == "twice the labels would gain 1.0 points"
    assert "shows over about 3 seeds; compare.seeds has 3" in result["because"][2]
    assert [each["name"] for each in result["help"]] == ["more-labels"]
    assert "they are there: few_labels: 40" in result["help"][0]["words"]
    assert result["warnings"] == []


def test_what_costs_no_label_comes_first() -> None:
    result = verdict(facts(longer=0.05))
    assert [each["name"] for each in result["help"]] == ["longer", "more-labels"]
    assert result["warnings"] == [
        "160 steps are too few: 3 times as many gain 5.0 points from scratch; raise finetune.steps first, it costs no label and no "
        "pretraining"
    ]


def test_trainings_that_are_too_short_tell_nothing() -> None:
    result = verdict(facts(longer=0.05, steps=50))
    assert result["expect"] == "unknown"
    assert result["words"].endswith("50 steps are too few, as 3 times as many gain 5.0 points; all 160 take --minutes 9 here")
    assert "longer" not in [each["name"] for each in result["help"]], "more steps than these are planned anyway"
    assert verdict(facts(steps=50))["expect"] == "little", "short ones that have converged do"


def test_what_does_not_learn_tells_nothing() -> None:
    inputs = facts()
    inputs["floor"] = inputs["scratch"]
    result = verdict(inputs)
    assert result["expect"] == "unknown"
    assert "scratch hardly beats the constant prediction (82.0), so it does not learn yet; look at the labels" in result["words"]


def test_the_text_has_every_figure() -> None:
    inputs = facts()
    printed = text(inputs | {"verdict": verdict(inputs)})
    for line in (
        "  constant prediction             42.0",
        "  random weights, frozen, linear  75.0 ± 1.1",
        "  20 labels (few_labels)          82.0 ± 1.2",
        "  434 labels (all there are)      83.9 ± 1.2",
        "  finetune  12 min, 9 times",
        "  x         not measured: so",
        "  in all 12 min, 0.10 at the given price",
    ):
        assert line in printed.splitlines()


def test_what_came_is_held_against_what_was_predicted() -> None:
    inputs = facts()  # +1.0, from -1.0 to +2.7

    def metrics(gain: float, seeds: int = 3) -> dict[str, dict[str, float]]:
        return {
            "scratch": {"miou_mean": 0.82, "miou_std": 0.012, "n_seeds": seeds},
            "features": {"miou_mean": 0.82 + gain, "miou_std": 0.016, "n_seeds": seeds},
        }

    outcome = realised(inputs, metrics(0.02))["features"]
    assert outcome["gain"] == pytest.approx(0.02)
    assert outcome["error"] == pytest.approx(0.02 / math.sqrt(3))
    assert (outcome["within"], outcome["right"]) == (True, True)
    none = realised(inputs, metrics(-0.005))["features"]
    assert (none["within"], none["right"]) == (True, False)
    assert realised(inputs, metrics(0.05))["features"]["within"] is False
    assert realised(inputs, metrics(0.02, seeds=1))["features"]["error"] is None
    assert realised(inputs, {"scratch": metrics(0)["scratch"]}) == {}


def test_figures_are_per_cent_and_times_are_rounded() -> None:
    assert (points(0.8236), points(0.01, "+"), points(-0.0001, "+"), points(-0.0001)) == ("82.4", "+1.0", "+0.0", "0.0")
    assert [rough_duration(seconds) for seconds in (40, 600, 12600)] == ["40 s", "10 min", "3.5 h"]
