"""The text of an assessment: expected gain of pretraining, reasons, and alternatives."""

from __future__ import annotations

import math
from typing import Any

from dreamteacher.assessment.changes import FACTOR
from dreamteacher.assessment.prediction import MIN_GAIN, seeds_to_show
from dreamteacher.project.cost import rough_duration

CONVERGED = 0.01  # gain of FACTOR times the steps below which the number of steps is enough
ABOVE_FLOOR = 0.02


def verdict(facts: dict[str, Any]) -> dict[str, Any]:
    """{"expect": "nothing", "little", "much" or "unknown", "words": one sentence, "because": [...], "help": [...], "warnings": [...]}.

    `facts` is `assess.json` without its verdict. `help` lists changes that gain at least MIN_GAIN, by descending gain, each with `words`,
    `gain` and its standard `error`, if measured.
    """
    ours = {init: each for init, each in facts["prediction"].items() if init != "imagenet"}
    because = [_headroom(facts), _next_labels(facts)]
    warnings = list(_warnings(facts))
    common: dict[str, Any] = {"because": because, "help": help_more(facts), "warnings": warnings}
    if not ours:
        return {"expect": "unknown", "words": "compare.inits names nothing that is pretrained here, so there is nothing to expect"} | common
    if why := _inconclusive(facts):
        return {"expect": "unknown", "words": f"these trainings do not tell what to expect: {why}"} | common
    best = max(ours, key=lambda init: ours[init]["expected"])
    predicted = ours[best]
    if predicted["expected"] >= MIN_GAIN:
        seeds = seeds_to_show(predicted["expected"], facts["spread"])
        has = facts["budget"]["seeds"]
        because.append(
            f"draws of {facts['labels']['few']} labels differ by {points(facts['spread'])} points (standard deviation), so that a gain of "
            f"{points(predicted['expected'])} shows over about {seeds} seeds; compare.seeds has {has}"
        )
    worth = f", as much as {predicted['labels']:,} more labels" if predicted["labels"] else ""
    how_much = f"{points(predicted['expected'], '+')} {facts['title']} points over scratch by {best}{worth} "
    how_much += f"({points(predicted['low'], '+')} to {points(predicted['high'], '+')} with the noise of the draws)"
    return {"expect": predicted["expect"], "words": f"expect {predicted['expect']} from pretraining: {how_much}"} | common


def _inconclusive(facts: dict[str, Any]) -> str:
    """Why the metrics allow no conclusion; empty if they do."""
    budget, longer = facts["budget"], _longer(facts)
    if facts["floor"] is not None and facts["scratch"] < facts["floor"] + ABOVE_FLOOR:
        return (
            f"scratch hardly beats the constant prediction ({points(facts['floor'])}), so it does not learn yet; look at the labels, then "
            "at finetune.steps and finetune.lr"
        )
    if budget["steps"] < budget["full"] and longer > CONVERGED:
        return (
            f"{budget['steps']} steps are too few, as {FACTOR} times as many gain {points(longer)} points; all {budget['full']} take "
            f"--minutes {math.ceil(budget['needed_minutes'])} here"
        )
    return ""


def _longer(facts: dict[str, Any]) -> float:
    """The gain of more steps; 0 if not measured."""
    return float(next((change["gain"] for change in facts["changes"] if change["name"] == "longer"), 0.0))


def help_more(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Changes that gain at least MIN_GAIN and their standard error from scratch, by descending gain."""
    few, labelled, double = facts["labels"]["few"], facts["labels"]["labelled"], facts["headroom"]["double"]
    found = []
    if double >= MIN_GAIN:
        there = f"; they are there: few_labels: {2 * few}" if 2 * few <= labelled else ""
        found.append({"name": "more-labels", "words": f"{few:,} more labels{there}", "gain": double, "error": None})
    tried = facts["changes"]
    if facts["budget"]["steps"] < facts["budget"]["full"]:  # more steps than these are planned anyway
        tried = [change for change in tried if change["name"] != "longer"]
    for change in tried:
        if change["gain"] >= max(MIN_GAIN, change["error"] or 0.0):
            found.append({key: change[key] for key in ("name", "words", "gain", "error", "settings")})
    return sorted(found, key=lambda each: -each["gain"])


def _headroom(facts: dict[str, Any]) -> str:
    labels, headroom, last, now = facts["labels"], facts["headroom"], facts["curve"][-1], points(facts["scratch"])
    if labels["measured"] == last["labels"]:
        more = points(headroom["more"])
        return f"from scratch {labels['few']} labels reach {now}, and by the curve eight times as many would gain {more} points"
    left = f"labels can gain {points(headroom['all'])} points" if headroom["all"] > 0 else "labels gain nothing more"
    return f"from scratch {labels['measured']} labels reach {now} and {last['labels']} reach {points(last['mean'])}: {left}"


def _next_labels(facts: dict[str, Any]) -> str:
    return f"twice the labels would gain {points(facts['headroom']['double'])} points"


def _warnings(facts: dict[str, Any]) -> list[str]:
    found, budget, labels, longer = [], facts["budget"], facts["labels"], _longer(facts)
    if budget["steps"] < budget["full"]:
        found.append(
            f"measured with {budget['steps']} of your {budget['full']} steps, so figures are lower than yours will be; "
            f"--minutes {math.ceil(budget['needed_minutes'])} allow all"
        )
    elif longer > CONVERGED:
        found.append(
            f"{budget['full']} steps are too few: {FACTOR} times as many gain {points(longer)} points from scratch; raise "
            "finetune.steps first, it costs no label and no pretraining"
        )
    if labels["few"] > labels["measured"]:
        held, few, end = labels["held_out"], labels["few"], labels["measured"]
        found.append(f"{held} labelled pictures are held out to measure by, so {few} labels are read off the curve, which ends at {end}")
    if labels["crossed"]:
        found.append(f"only {labels['held_out']} pictures measure each draw, so expect figures to be off by some points")
    return found


def points(value: float, sign: str = "") -> str:
    """A metric or a difference of metrics in per cent, with one decimal: `points(0.012, "+")` is "+1.2"."""
    return f"{100 * value + 0.0:{sign}.1f}".replace("-0.0", "0.0" if not sign else "+0.0")


def text(facts: dict[str, Any]) -> str:
    """The assessment for a terminal: metrics, predictions, cost, verdict."""
    labels, budget = facts["labels"], facts["budget"]
    others = " (others in each draw)" if labels["crossed"] else ""
    lines = [
        f"{facts['title']} in per cent; from scratch, {budget['steps']} of {budget['full']} steps, {budget['draws']} draws; "
        f"{labels['held_out']} of {labels['labelled']} labelled train pictures are held out{others}; the validation split is not read"
    ]
    rows: list[tuple[str, str]] = []
    if facts["floor"] is not None:
        rows.append(("constant prediction", points(facts["floor"])))
    rows += [(f"random weights, frozen, {name}", _spread(*value)) for name, value in (facts["read_out"] or {}).items()]
    for point in facts["curve"]:
        marks = [word for word, n in (("few_labels", labels["measured"]), ("all there are", labels["pool"])) if n == point["labels"]]
        rows.append((f"{point['labels']} labels" + (f" ({', '.join(marks)})" if marks else ""), _spread(point["mean"], point["std"])))
    rows += [(change["words"], f"{points(change['mean'])} ({points(change['gain'], '+')})") for change in facts["changes"]]
    for init, each in facts["prediction"].items():
        between = f"({points(each['low'], '+')} to {points(each['high'], '+')})"
        rows.append((f"predicted for {init}", f"{points(each['expected'], '+')} {between}"))
    lines += _columns(rows)
    lines += ["", f"cost on {facts['cost']['machine']}:"]
    lines += _columns([(stage["name"], _cost_words(stage)) for stage in facts["cost"]["stages"]])
    total = facts["cost"]["price"]
    lines.append(
        f"  in all {rough_duration(facts['cost']['seconds'])}" + (f", {total:.2f} at the given price" if total is not None else "")
    )
    outcome = facts["verdict"]
    lines += ["", f"{outcome['words']}; because", *(f"  * {reason}" for reason in outcome["because"])]
    if outcome["help"]:
        lines += [
            "what else gains, from scratch:",
            *(f"  * {points(each['gain'], '+')}  {each['words']}{_set(each)}" for each in outcome["help"]),
        ]
    lines += [f"note: {warning}" for warning in outcome["warnings"]]
    return "\n".join([*lines, ""])


def _set(each: dict[str, Any]) -> str:
    settings = each.get("settings", {}).items()
    words = ", ".join(f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {value}" for name, value in settings)
    return f" ({words})" if words else ""


def _cost_words(stage: dict[str, Any]) -> str:
    if stage["seconds"] is None:
        return f"not measured: {stage['why']}"
    return rough_duration(stage["seconds"]) + (f", {stage['times']} times" if stage["times"] > 1 else "")


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def _spread(mean: float, std: float) -> str:
    return f"{points(mean)} ± {points(std)}"
