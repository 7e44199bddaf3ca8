"""The predicted gain of pretraining over training from scratch, and its comparison with the result of a run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dreamteacher.assessment.curve import Curve


@dataclass(frozen=True)
class Worth:
    """The value of an initialisation in doublings of the number of labels: minimum, most likely, maximum. source: of these numbers."""

    least: float
    likely: float
    most: float
    source: str


# Rough estimates; refit them when more runs have been compared with their predictions (`python -m benchmarks.assess`).
WORTH = {
    "recipe": Worth(
        0,
        1,
        3,
        "own runs on nuclei, CamVid: 0 to 1; SimCLR on STL-10, 5 to 100 labels a class: 2.5 to 3.7; the paper on BDD100K more",
    ),
    "label_recipe": Worth(0, 1, 3, "own runs on nuclei: about 0.7 with 5 labels, none with 20"),
    "imagenet": Worth(0, 2, 5, "none of our own; nothing on pictures unlike photographs, much on photographs"),
}
HEAD_START = 0.5  # share of the gain of more steps, as pretrained networks converge faster (He et al., arXiv 1811.08883)
PAIRED_SPREAD = 0.7  # std of the paired gain over std of scratch; six draws of 5 nuclei labels gave gains of 8.7 to 12.9 points
MIN_GAIN = 0.005  # smaller gains count as none
LARGE_GAIN = 0.03
NEGLIGIBLE_GAIN = 0.01  # expect nothing if even the maximum gain is below


@dataclass(frozen=True)
class Prediction:
    """Gain over scratch, as difference of a metric in [0, 1]; the gain of a run should lie between `low` and `high`.

    most: maximum without noise. labels: number of additional labels that would gain `expected`; infinity if no number does.
    """

    low: float
    expected: float
    high: float
    most: float
    labels: float


def predict(curve: Curve, few: int, kind: str, *, longer: float, spread: float, seeds: int) -> Prediction:
    """Predict the gain of an initialisation of a `kind` in WORTH with `few` labels.

    Args:
        curve: of training from scratch.
        few: labels of the interpreter and fine-tuning.
        kind: of WORTH.
        longer: gain of three times the steps from scratch; 0 if unknown.
        spread: standard deviation of scratch over draws of labels.
        seeds: number of draws in the mean of the run.
    """
    now, worth = curve.at(few), WORTH[kind]

    def gain(doublings: float) -> float:
        return curve.at(few * 2**doublings) - now

    ahead = max(0.0, longer)
    expected, most = gain(worth.likely) + HEAD_START * ahead, gain(worth.most) + ahead
    noise = 2 * PAIRED_SPREAD * spread / math.sqrt(seeds)
    labels = curve.labels_for(now + expected) - few if expected >= MIN_GAIN else 0.0
    return Prediction(gain(worth.least) - noise, expected, min(most + noise, 1 - now), min(most, 1 - now), labels)


def expectation(prediction: Prediction) -> str:
    """ "nothing", "little" or "much"."""
    if prediction.expected < MIN_GAIN or prediction.most < NEGLIGIBLE_GAIN:
        return "nothing"
    return "much" if prediction.expected >= LARGE_GAIN else "little"


def to_json(prediction: Prediction) -> dict[str, Any]:
    """The prediction for `assess.json`: `labels` as an integer, or None for infinity; and `expect`."""
    labels = round(prediction.labels) if math.isfinite(prediction.labels) else None
    return asdict(prediction) | {"labels": labels, "expect": expectation(prediction)}


def seeds_to_show(gain: float, spread: float) -> int:
    """Number of draws for which a mean gain is about twice its standard error; at least two."""
    return max(2, math.ceil((2 * PAIRED_SPREAD * spread / gain) ** 2))


def realised(assessment: dict[str, Any], metrics: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Compare predictions with the results of a run.

    Args:
        assessment: `assess.json`.
        metrics: `metrics.json` of evaluate, of a run with the same labels.

    Returns:
        {init: {"predicted", "low", "high", "gain", "error", "within", "right"}} for each init with a prediction and a result.
        error: standard error of the gain, computed as if unpaired, so rather too large; None for one seed. within: the gain lies between
        low and high. right: the prediction of a gain (at least MIN_GAIN), or of none, is correct.
    """
    mean, std = (f"{assessment['figure']}_{kind}" for kind in ("mean", "std"))
    scratch, found = metrics.get("scratch"), {}
    for init, predicted in assessment["prediction"].items():
        if not scratch or init not in metrics or mean not in metrics[init]:
            continue
        of_init = metrics[init]
        gain, seeds = of_init[mean] - scratch[mean], min(of_init["n_seeds"], scratch["n_seeds"])
        error = math.sqrt((of_init[std] ** 2 + scratch[std] ** 2) / seeds) if seeds > 1 else None
        found[init] = {
            "predicted": predicted["expected"],
            "low": predicted["low"],
            "high": predicted["high"],
            "gain": gain,
            "error": error,
            "within": predicted["low"] <= gain <= predicted["high"],
            "right": (predicted["expected"] >= MIN_GAIN) == (gain >= MIN_GAIN),
        }
    return found
