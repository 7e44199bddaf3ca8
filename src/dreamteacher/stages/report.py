"""One HTML page about a run: whether pretraining helped, metrics, data and cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dreamteacher.errors import UserError
from dreamteacher.report.page import render
from dreamteacher.report.run import Output, Run
from dreamteacher.report.verdict import gains_of
from dreamteacher.settings.schema import ALL_TEACHERS, NO_TEACHER, Params
from dreamteacher.stage import RECORD, digest_of, open_stage, read_stage

PAGE = "report.html"
BESIDE = ("assess", "compare-data", "gate")  # optional outputs


def run(params: Params, *, artifacts: Path, out: Path, overwrite: bool = False) -> dict[str, float]:
    """Write `out`/report.html about the stage outputs in `artifacts` that belong to the settings.

    Missing outputs are listed on the page with the commands that make them. The durations on the page come from this machine's records,
    so unlike most outputs the file is not byte-identical everywhere.

    Returns:
        Numbers of `outputs` and `missing` ones; INIT_gain over training from scratch in the main metric, in [-1, 1], and INIT_gain_half,
        the half width of its 95 % interval.

    Raises:
        UserError: `artifacts` has no output of these settings, or one is damaged.
    """
    recorded = params.section("recipes", "label_recipes", "compare")
    found = read_run(params, artifacts)
    if not found.found:
        raise UserError(f"{artifacts} holds no complete output of a stage; run `dreamteacher ingest` first, or name another --artifacts")
    inputs = {place: output.folder for place, output in found.found.items()}
    with open_stage("report", params=recorded, inputs=inputs, out=out, overwrite=overwrite) as stage:
        if not stage.done:
            (stage.tmp / PAGE).write_text(render(found))
            stage.tracker.artifact(stage.tmp / PAGE)
            stage.metrics = {"outputs": float(len(found.found)), "missing": float(len(found.missing)), **gains_of(found)}
    return stage.metrics


def read_run(params: Params, artifacts: Path) -> Run:
    """The outputs in `artifacts` that the settings name, and optional ones; a run without outputs if there are none."""
    found: dict[str, Output] = {}
    missing: dict[str, str] = {}
    for place, command in _wanted(params, artifacts):
        folder = artifacts / place
        if (folder / RECORD).exists():
            found[place] = Output(folder, read_stage(folder))
        elif command:
            missing[place] = command
    run = Run(
        found,
        missing,
        teacher_of={name: recipe.teacher for name, recipe in params.recipes.items()},
        base_of={name: recipe.features for name, recipe in params.label_recipes.items()},
    )
    if run.data and not run.description.get("task"):  # then the chain ends with backbones
        without = {name: command for name, command in missing.items() if name.partition("/")[0] in ("teachers", "backbones")}
        missing.clear()
        missing.update({name: command for name, command in without.items() if name.count("/") == 1})
    run.notes.extend(_changed_since(run))
    return run


def _wanted(params: Params, artifacts: Path) -> Iterator[tuple[str, str]]:
    """(place below artifacts, command that makes it; "": only some runs have it), in the order of the chain."""
    yield "data", "dreamteacher ingest"
    for name in dict.fromkeys(recipe.teacher for recipe in params.recipes.values()):
        if name == ALL_TEACHERS:
            yield from ((f"teachers/{folder.name}", "") for folder in sorted((artifacts / "teachers").glob("*")))
        elif name != NO_TEACHER:
            yield f"teachers/{name}", f"dreamteacher train-teacher --name {name}"
    for name in params.recipes:
        yield f"backbones/{name}", f"dreamteacher distill-features --recipe {name}"
    for name in params.label_recipes:
        for seed in params.compare.seeds:
            options = f"--recipe {name} --seed {seed}"
            yield f"interpreters/{name}/{seed}", f"dreamteacher train-interpreter {options}"
            yield f"backbones/{name}/{seed}", f"dreamteacher distill-labels {options}"
    for init in params.compare.inits:
        for seed in params.compare.seeds:
            yield f"finetuned/{init}/{seed}", f"dreamteacher finetune --init {init} --seed {seed}"
    yield "evaluation", "dreamteacher evaluate"
    for name in BESIDE:
        yield name, ""


def _changed_since(run: Run) -> Iterator[str]:
    """A sentence for each output that has changed since the comparison."""
    if run.evaluation:
        for place, digest in run.evaluation.record["inputs"].items():
            if place in run.found and digest_of(run.found[place].folder) != digest:
                yield f"{place} has changed since the comparison; `dreamteacher evaluate --overwrite` makes it anew"
