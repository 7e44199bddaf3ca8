"""First step of a pipeline on a cluster: everything the run depends on, as parameters for KFP's cache.

KFP reuses a step's outputs if component, parameters and the ids of its input artifacts are equal, and an artifact gets a new id whenever
its step runs. So each step must get only parameters that it depends on: each stage gets its own sections of the settings, and pictures are
identified by the last commit that changed them.
"""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamteacher.errors import UserError
from dreamteacher.files import digest_in_any_order, walk
from dreamteacher.settings.recipes import base_of, bases, changes, of_recipe
from dreamteacher.settings.schema import ALL_TEACHERS, FRESH, Params
from dreamteacher.stages.fetch_data import FILES, check_source, parts_of, settings_of
from dreamteacher.versioning import Clone

# The sections of params.yaml that each step reads; for stages as in dvc.yaml.
SECTIONS: dict[str, tuple[str, ...]] = {
    "ingest": ("ingest",),
    "ingest_incoming": ("ingest", "retrain"),
    "compare_data": ("distill", "retrain"),
    "train_teacher": ("seed", "teacher"),
    "distill_features": ("seed", "taps", "student", "distill"),
    "train_interpreter": ("few_labels", "few_labels_by", "taps", "interpreter"),
    "distill_labels": ("taps", "student", "distill", "labels"),
    "finetune": ("few_labels", "few_labels_by", "student", "finetune"),
    "evaluate": ("few_labels", "few_labels_by", "recipes", "label_recipes", "compare", "evaluate"),
    "export_onnx": ("export",),
    "publish": ("publish",),
    "report": ("recipes", "label_recipes", "compare"),
    "gate": ("export", "retrain"),
}


@dataclass(frozen=True)
class Resolved:
    """What a run depends on.

    Attributes:
        commit: the commit of `data_rev`; "" for a folder.
        source: ingest.source, a path in the project.
        data_version: the last commit that changed it; for a folder FILES and a digest of names, sizes and times.
        params: all settings that the run reads; for a retraining, those of its recipe.
        teacher, recipe: names of the teacher and the recipe of export.init.
        settings: {step: its sections}, as plain data without null, which KFP's local runner does not support.
        fresh: {"init", "seed"} of each fine-tuning from random or ImageNet weights.
        teachers: {"teacher", "changes"} of each teacher; changes are what it, or below a recipe, has otherwise than `settings`.
        recipes: {teacher: {"recipe", "distill", "finetune"} of each recipe without labels that learns from it}, the last two as changes.
        passes: {recipe: {"seeds", "mixed"}}: seeds of the fine-tunings from it, and {"init", "seed", "interpreter", "labels", "finetune"}
            of each label distillation that builds on it, the last three as changes.
    """

    commit: str
    source: str
    data_version: str
    params: Params
    teacher: str
    recipe: str
    settings: dict[str, dict[str, Any]]
    fresh: list[dict[str, Any]]
    teachers: list[dict[str, Any]]
    recipes: dict[str, list[dict[str, Any]]]
    passes: dict[str, dict[str, list[Any]]]


def resolve(*, git_url: str, data_rev: str, overrides: list[str], pipeline: str) -> Resolved:
    """Resolve the project `git_url` at `data_rev`: its settings, and the version of its pictures.

    Args:
        git_url: URL of a git repository; if `data_rev` is "", a local folder.
        data_rev: commit, tag or branch.
        overrides: overrides of params.yaml, as for `--set`.
        pipeline: "pretrain", or "retrain", which compares only with the champion.

    Raises:
        UserError: there is no such project or revision, a setting is invalid, or the pipeline would have nothing to compare.
    """
    for each in overrides:
        if not isinstance(each, str):
            raise UserError(f'settings: {each!r} is no text; write it as "KEY.KEY=VALUE", such as "distill.T=250"')
    if not git_url:
        raise UserError("git_url is empty; name the project's git repository")
    commit, version, params = _read_project(git_url, data_rev, overrides)
    source = params.ingest.source
    check_comparison(params, pipeline)
    if pipeline == "retrain":
        inits = [init for init in params.compare.inits if init not in FRESH]
        params = params.model_copy(update={"compare": params.compare.model_copy(update={"inits": inits})})
    params = params.model_copy(update=_compared(params))
    if pipeline == "retrain":
        params = of_recipe(params, bases(params)[0])
    recipe = base_of(params, params.export.init)
    teachers, recipes, passes = _loops(params)
    return Resolved(
        commit=commit,
        source=source,
        data_version=version,
        params=params,
        teacher=params.recipes[recipe].teacher,
        recipe=recipe,
        settings={step: _without_null(params.section(*sections)) for step, sections in SECTIONS.items()},
        fresh=[{"init": init, "seed": seed} for init in params.compare.inits if init in FRESH for seed in params.compare.seeds],
        teachers=teachers,
        recipes=recipes,
        passes=passes,
    )


def _read_project(git_url: str, data_rev: str, overrides: list[str]) -> tuple[str, str, Params]:
    """The commit ("" of a folder), the version of its pictures, and its settings."""
    with tempfile.TemporaryDirectory() as scratch:
        clone = None if not data_rev and Path(git_url).is_dir() else Clone(git_url, data_rev, Path(scratch) / "project")
        folder = clone.folder if clone else Path(git_url)
        params = settings_of(folder, overrides, f"revision {clone.commit[:12]} of git_url" if clone else str(folder.absolute()))
        if clone:
            return clone.commit, clone.last_change(parts_of(clone, params.ingest.source)), params
        check_source(folder, params.ingest.source)
        return "", FILES + _digest_of_files(folder / params.ingest.source), params


def _loops(params: Params) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]], dict[str, dict[str, list[Any]]]]:
    """The `teachers`, `recipes` and `passes` of Resolved."""
    teachers: dict[str, dict[str, Any]] = {}
    recipes: dict[str, list[dict[str, Any]]] = {}
    passes: dict[str, dict[str, list[Any]]] = {}
    seeds = list(params.compare.seeds)
    for name, own in params.recipes.items():
        resolved = of_recipe(params, name)

        def changed(step: str, resolved: Params = resolved) -> dict[str, Any]:
            return _without_null(changes(params, resolved, *SECTIONS[step]))

        teachers.setdefault(own.teacher, {"teacher": own.teacher, "changes": changed("train_teacher")})
        of_loop = {"recipe": name, "distill": changed("distill_features"), "finetune": changed("finetune")}
        recipes.setdefault(own.teacher, []).append(of_loop)
        mixed = []
        for init in [init for init in params.compare.inits if init in params.label_recipes and base_of(params, init) == name]:
            of_labels = of_recipe(params, init)
            steps = {"interpreter": "train_interpreter", "labels": "distill_labels", "finetune": "finetune"}
            changed_by_labels = {key: changed(step, of_labels) for key, step in steps.items()}
            mixed += [{"init": init, "seed": seed, **changed_by_labels} for seed in seeds]
        passes[name] = {"seeds": seeds if name in params.compare.inits else [], "mixed": mixed}
    return list(teachers.values()), recipes, passes


# Argo keeps all nodes of a run in one object of at most 1 MiB: kB per iteration of each loop, and the budget for all
# (tests/pipelines/test_size.py).
PASS_KB = {"teachers": 17, "recipes": 26, "label distillations": 25, "fine-tunings": 7}
ROOM_KB = 650


def check_comparison(params: Params, pipeline: str) -> None:
    """Check that the pipeline can run these settings.

    Raises:
        UserError: there is no recipe; pretrain has no baseline, and KFP cannot collect a loop without items; the loops have more iterations
            than Argo can store; a recipe learns from all teachers; or a retraining has several recipes without labels, one without a
            teacher, or exports a baseline, which it does not train.
    """
    retrain = pipeline == "retrain"
    inits = [init for init in params.compare.inits if not retrain or init not in FRESH]
    wanted: dict[str, Iterable[str]] = {"a recipe": [*params.recipes, *params.label_recipes]}
    if not retrain:
        wanted["scratch or imagenet"] = FRESH
    for name, group in wanted.items():
        if not set(inits) & set(group):
            raise UserError(
                f"compare.inits = {params.compare.inits}: the pipeline {pipeline} compares "
                f"{'recipes' if retrain else 'recipes with scratch or imagenet'}; add {name}"
            )
    if params.export.init not in inits:  # Params requires it of compare.inits
        raise UserError(
            f"export.init = {params.export.init}: a retraining goes on from the champion's backbone and trains no model from "
            f"{params.export.init}; export one of {', '.join(inits)}"
        )
    used = bases(params)
    if retrain and len(used) > 1:
        raise UserError(
            f"compare.inits = {params.compare.inits} needs the recipes {', '.join(used)}: a retraining goes on from the champion, which "
            "was made by one of them; name that one and the label_recipes that build on it"
        )
    for name in used:
        if params.recipes[name].teacher == ALL_TEACHERS:
            raise UserError(
                f"recipes.{name} learns from all teachers, of which KFP can give a step either one or all that its cache then takes for "
                "one; leave it out of compare.inits, and compare with it by `dvc repro`"
            )
        if retrain and not params.recipes[name].one_teacher:
            raise UserError(f"recipes.{name} has no teacher of its own, and a retraining trains one; compare with it by `dvc repro`")
    seeds, with_labels = len(params.compare.seeds), sum(init in params.label_recipes for init in inits)
    counts = [len({params.recipes[name].teacher for name in used}), len(used), with_labels * seeds, (len(inits) - with_labels) * seeds]
    if (size := sum(count * each for count, each in zip(counts, PASS_KB.values(), strict=True))) > ROOM_KB:
        passes = ", ".join(f"{count} {loop}" for count, loop in zip(counts, PASS_KB, strict=True))
        raise UserError(
            f"compare: {seeds} seeds of {len(inits)} initialisations are {passes}, of which Argo would keep {size} kB, more than the "
            f"{ROOM_KB} that it has for one run; use fewer of them, or `dvc repro`, which has no such limit"
        )


def _compared(params: Params) -> dict[str, Any]:
    """Only the recipes of a run, so that other recipes do not change its steps' inputs."""
    with_labels = {name: each for name, each in params.label_recipes.items() if name in params.compare.inits}
    return {"recipes": {name: params.recipes[name] for name in bases(params)}, "label_recipes": with_labels}


def _without_null(value: Any) -> Any:
    """None as the word "null", which `restore_params` reads."""
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items()}
    return "null" if value is None else value


def _digest_of_files(place: Path) -> str:
    """Digest of names, sizes and times of the files at `place` (or beside it, for a list of files or shards)."""
    folder = place if place.is_dir() else place.parent

    def describe(name: str) -> bytes:
        path = posixpath.join(folder, name)
        found = os.stat(path) if os.path.exists(path) else None  # noqa: PTH110, PTH116 - see files.walk
        return b"\0".join([os.fsencode(name), str((found.st_size, found.st_mtime_ns) if found else ()).encode()])

    return digest_in_any_order(describe(name) for name in walk(folder))
