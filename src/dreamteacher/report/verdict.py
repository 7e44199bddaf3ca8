"""Comparison section of the report: whether pretraining helps, in words, a table and two plots."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from dreamteacher.clock import clock_of
from dreamteacher.report.charts import intervals, strips
from dreamteacher.report.floor import Floor, constant_prediction
from dreamteacher.report.paired import Gain, gain_over, points
from dreamteacher.report.records import duration
from dreamteacher.report.run import REFERENCE, Run, Table
from dreamteacher.report.summary import spread

PROBES = {"linear": ("linear probe", "frozen, linear"), "knn": ("kNN probe", "frozen, kNN")}  # name in a sentence, name in a header
TONES = {"gain": "good", "loss": "bad"}
CLASSES = 200  # maximum rows of the table of classes
FOREIGN = "imagenet"  # pretrained by others: compared, but not a result of this run


def comparison(run: Run) -> dict[str, Any]:
    """Template variables of the comparison; without an evaluation `headline` says why there is none."""
    if not run.results:
        return _without(run)
    gains = _gains(run, run.metric)
    controls = run.controls
    over_control = _gains(run, run.metric, controls[0]) if controls else []
    floor = constant_prediction(run.metric, run.data.json("report.json")) if run.data else None
    of_init = {init: [float(row[run.metric]) for row in run.models if row["init"] == init] for init in run.results}
    tone, headline, explained = _headline(run, gains, controls, over_control)
    below = [init for init, values in of_init.items() if floor and fmean(values) <= floor.value]
    return {
        "tone": tone,
        "headline": headline,
        "explained": explained,
        "gains": [(gain.init, gain.words, gain.verdict, TONES.get(gain.verdict, "")) for gain in gains],
        "floor": _floor_words(run, floor, below),
        "frozen": _frozen(run),
        "interpreters": _interpreters(run, of_init),
        "table": _table(run, gains, controls, over_control, floor),
        "classes": _classes(run),
        "strips": strips(of_init, f"{run.title}, %"),
        "intervals": intervals(gains, f"gain over {REFERENCE}, points of {run.title}") if gains else None,
    }


def gains_of(run: Run) -> dict[str, float]:
    """{INIT_gain, INIT_gain_half} over training from scratch, in [-1, 1]; the half width only where there is an interval."""
    found: dict[str, float] = {}
    for gain in _gains(run, run.metric):
        found[f"{gain.init}_gain"] = gain.mean
        if gain.verdict != "no interval":
            found[f"{gain.init}_gain_half"] = gain.half
    return found


def _gains(run: Run, metric: str, reference: str = REFERENCE) -> list[Gain]:
    others = [init for init in run.results if init not in (REFERENCE, reference)]
    return [gain for init in others if (gain := gain_over(run.models, metric, init, reference))]


def _without(run: Run) -> dict[str, Any]:
    if not run.description.get("task") and run.data:
        why = "The pictures have no labels, so the run ends with pretrained backbones: nothing is fine-tuned or compared."
    else:
        why = "The fine-tuned models have not been compared; `dreamteacher evaluate` does that."
    headline = "Pretrained, not compared" if run.below("backbones") else "Nothing to compare yet"
    return {"tone": "", "headline": headline, "explained": [why], "floor": ""}


def _headline(run: Run, gains: list[Gain], controls: list[str], over_control: list[Gain]) -> tuple[str, str, list[str]]:
    """(tone, headline, explanation)."""
    ours = [gain for gain in gains if gain.init not in (FOREIGN, *controls)]
    if not ours:
        lacks = f"training from scratch; add {REFERENCE} to compare.inits" if REFERENCE not in run.results else "a pretrained backbone"
        return "", "No gain can be stated", [f"The comparison lacks {lacks}{' of a trained teacher' if controls else ''}."]
    best = max(ours, key=lambda gain: gain.mean)
    beyond = next((gain for gain in over_control if gain.init == best.init), None)
    verdicts = {gain.verdict for gain in ours}
    over = [f"{best.init}: {best.words} ({run.title}, {best.pairs} paired draw{'s' if best.pairs != 1 else ''} of labels and weights)."]
    if beyond:
        over += [f"Over the control {controls[0]}, whose teacher is not trained: {beyond.words} – {beyond.verdict}."]
    if best.verdict == "no interval":
        why = "One seed" if best.pairs == 1 else "Equal gains"
        return "", f"{why}: no interval, no verdict", [*over, "More seeds in compare.seeds are needed to distinguish a gain from chance."]
    if best.verdict == "gain":
        gained = f"{points(best.mean).lstrip('+')} points of {run.title} over training from scratch"
        winners = sum(gain.verdict == "gain" for gain in ours)
        caution = ["It is the best of several initialisations; its interval is not corrected for this selection."] if len(ours) > 1 else []
        several = [f"{winners} of {len(ours)} pretrained initialisations gain."] if len(ours) > 1 else []
        if beyond and beyond.verdict != "gain":
            why = "So the gain may come from distillation itself, not from the training of the teacher."
            return "flat", f"{best.init} gains {gained}, but not over the control", [*over, why, *several, *caution]
        return "good", f"Pretraining helps: {best.init} gains {gained}", [*over, *several, *caution]
    if verdicts == {"loss"}:
        return "bad", "Loss: training from scratch is better than every pretrained initialisation", over
    explained = [f"The best is {over[0]}", "The interval contains 0, so the difference may be chance.", *over[1:]]
    return "flat", "No gain beyond the spread of the seeds", explained


def _floor_words(run: Run, floor: Floor | None, below: list[str]) -> str:
    if floor is None:
        return f"The score of a constant prediction is not known for {run.title or 'this task'}."
    words = f"A constant prediction ({floor.words}) scores {100 * floor.value:.1f}."
    return f"{words} Not above it: {', '.join(below)}." if below else words


def _frozen(run: Run) -> list[str]:
    """A sentence per recipe and probe: the gain of frozen features over random weights."""
    found = []
    tuned = {gain.init: gain.mean for gain in _gains(run, run.metric)}
    for probe, (words, _) in PROBES.items():
        for gain in _gains(run, f"{probe}_{run.metric}"):
            left = f" After fine-tuning {points(tuned[gain.init])} points are left." if gain.verdict == "gain" else ""
            found.append(f"{words} of {gain.init}: {gain.words} over random weights – {gain.verdict}.{left}")
    return found


def _interpreters(run: Run, of_init: dict[str, list[float]]) -> list[str]:
    """A sentence per label recipe: the metric of its interpreter."""
    read: dict[str, list[float]] = {}
    for place, output in run.below("interpreters").items():
        if (value := output.metrics.get(f"val_{run.metric}")) is not None:
            read.setdefault(place.partition("/")[0], []).append(value)
    found = []
    for recipe, values in read.items():
        words = f"the interpreter of {recipe} reaches {100 * fmean(values):.1f} {run.title} on crops"
        if REFERENCE in of_init and fmean(values) < fmean(of_init[REFERENCE]):
            words += f": less than training from {REFERENCE}, so expect little from its labels"
        found.append(f"{words}.")
    return found


def _table(run: Run, gains: list[Gain], controls: list[str], over_control: list[Gain], floor: Floor | None) -> Table:
    probes = [probe for probe in PROBES if any(f"{probe}_{run.metric}_mean" in of for of in run.results.values())]
    of_gain = {gain.init: gain for gain in gains}
    beyond = {gain.init: gain.short for gain in over_control}
    rows = []
    for init, metrics in run.results.items():
        gain = of_gain.get(init)
        rows.append([init, spread(metrics, run.metric), str(metrics["n_seeds"]), *_over(gain)])
        rows[-1] += [beyond.get(init, "")] if controls else []
        rows[-1] += [spread(metrics, f"{probe}_{run.metric}").replace("-", "") for probe in probes]
        rows[-1].append(_time(run, init))
    best = max(range(len(rows)), key=lambda i: run.results[rows[i][0]][f"{run.metric}_mean"])
    if floor:
        rows.append(["constant prediction", f"{100 * floor.value:.1f}", *[""] * (len(rows[0]) - 2)])
    head = ["initialisation", f"{run.title}, %", "seeds", f"over {REFERENCE}", "95 % interval", "verdict"]
    head += ["over control"] if controls else []
    head += [PROBES[probe][1] for probe in probes] + ["time"]
    return Table(head, rows, frozenset({1, 2, 3, 4} | set(range(6, len(head)))), best)


def _time(run: Run, init: str) -> str:
    """Recorded time of pretraining and fine-tuning one model, averaged over the seeds; "" unless all of it is recorded.

    A recipe with labels counts the distillation that it starts from, too.
    """
    seconds = 0.0
    for kind, name in (("backbones", run.base_of.get(init)), ("interpreters", init), ("backbones", init), ("finetuned", init)):
        outputs = [output for place, output in run.below(kind).items() if place.partition("/")[0] == name]
        clocks = [clock_of(output.record["stage"], output.record["digest"]) for output in outputs]
        if not all(clocks):
            return ""
        seconds += fmean(clock["seconds"] for clock in clocks) if clocks else 0.0
    return duration(seconds)


def _over(gain: Gain | None) -> list[str]:
    if gain is None:
        return ["", "", ""]
    low, high = points(gain.mean - gain.half), points(gain.mean + gain.half)
    return [points(gain.mean), "" if gain.verdict == "no interval" else f"{low} to {high}", gain.verdict]


def _classes(run: Run) -> Table | None:
    """Metrics per class, one column per initialisation; None for fewer than two classes."""
    known = run.description.get("classes", [])
    kinds = {"miou": "iou", "top1": "accuracy", "ap": "ap"}
    kind = kinds.get(run.metric, run.metric)
    names = [name for name in known if any(f"{kind}_{name}_mean" in of for of in run.results.values())]
    if len(names) < 2:
        return None
    rows = [[name, *(spread(of, f"{kind}_{name}") for of in run.results.values())] for name in names[:CLASSES]]
    return Table(["class", *run.results], rows, frozenset(range(1, len(run.results) + 1)))
