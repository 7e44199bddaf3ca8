"""What a pretraining is expected to gain over training from scratch, and, after a run, whether it came so."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dreamteacher.assessment.curve import Curve


@dataclass(frozen=True)
class Worth:
    """What an initialisation is worth, as doublings of the number of labels: at least, most likely, at most. source: of these figures."""

    least: float
    likely: float
    most: float
    source: str


# The rough part of every prediction: to be fitted again when more runs have been compared with theirs (`python -m benchmarks.assess`).
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
HEAD_START = 0.5  # of what more steps gain, by which a pretrained network is ahead (He et al., arXiv 1811.08883: it converges faster)
PAIRED = 0.7  # spread of the gain over draws of labels, over that of scratch: six draws of 5 nuclei labels gave 8.7 to 12.9 points
SHOWS = 0.005  # a gain below half a point is none
MUCH = 0.03
NOTHING = 0.01  # where even the most that can be hoped for is less


@dataclass(frozen=True)
class Prediction:
    """Gain over scratch, as differences of a figure in [0, 1]; what a run gains should lie between `low` and `high`.

    most: as much as can be hoped for, without noise. labels: how many more labels would gain `expected`; infinity where none would.
    """

    low: float
    expected: float
    high: float
    most: float
    labels: float


def predict(curve: Curve, few: int, kind: str, *, longer: float, spread: float, seeds: int) -> Prediction:
    """The gain of an initialisation of a `kind` in WORTH with `few` labels.

    Args:
        curve: of training from scratch.
        few: labels that the interpreter and fine-tuning will see.
        kind: of WORTH.
        longer: what three times the steps gain from scratch; 0 where it is not known.
        spread: standard deviation of scratch over draws of the labels.
        seeds: draws over which the run takes its mean.
    """
    now, worth = curve.at(few), WORTH[kind]

    def gain(doublings: float) -> float:
        return curve.at(few * 2**doublings) - now

    ahead = max(0.0, longer)
    expected, most = gain(worth.likely) + HEAD_START * ahead, gain(worth.most) + ahead
    noise = 2 * PAIRED * spread / math.sqrt(seeds)
    labels = curve.labels_for(now + expected) - few if expected >= SHOWS else 0.0
    return Prediction(gain(worth.least) - noise, expected, min(most + noise, 1 - now), min(most, 1 - now), labels)


def expectation(prediction: Prediction) -> str:
    """ "nothing", "little" or "much"."""
    if prediction.expected < SHOWS or prediction.most < NOTHING:
        return "nothing"
    return "much" if prediction.expected >= MUCH else "little"


def described(prediction: Prediction) -> dict[str, Any]:
    """As it stands in `assess.json`: plain numbers, `labels` whole or, where no number of labels gains as much, null; and `expect`."""
    labels = round(prediction.labels) if math.isfinite(prediction.labels) else None
    return asdict(prediction) | {"labels": labels, "expect": expectation(prediction)}


def seeds_to_show(gain: float, spread: float) -> int:
    """Draws of labels after which a mean gain is about twice its standard error; two at least."""
    return max(2, math.ceil((2 * PAIRED * spread / gain) ** 2))


def realised(assessment: dict[str, Any], metrics: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """What came of the predictions.

    Args:
        assessment: `assess.json`.
        metrics: `metrics.json` of evaluate, of a run with the same labels.

    Returns:
        {init: {"predicted", "low", "high", "gain", "error", "within", "right"}} of those that were predicted and compared with scratch.
        error: standard error of the gain, from the spread over seeds as if each had draws of its own, so rather too large; None for one
        seed. within: the gain lies between low and high. right: the prediction said truly that there is a gain (of half a point or
        more), or that there is none.
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
            "right": (predicted["expected"] >= SHOWS) == (gain >= SHOWS),
        }
    return found
