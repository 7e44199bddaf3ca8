"""First step of a pipeline on a cluster: all that the run depends on, as parameters that KFP's cache compares.

KFP takes a step's outputs from an earlier run if component, parameters and the ids of its input artifacts are equal, and an artifact has
a new id whenever the step that made it ran. So what changes often may reach only the steps that depend on it: each stage gets its own
sections of the settings, and the pictures are named by the last commit that changed them.
"""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamteacher.errors import UserError
from dreamteacher.files import digest_in_any_order, walk
from dreamteacher.settings.recipes import base_of, of_recipe
from dreamteacher.settings.schema import FRESH, Params
from dreamteacher.stages.fetch_data import FILES, check_source, parts_of, settings_of
from dreamteacher.versioning import Clone

# The sections of params.yaml that each step reads; of the stages of dvc.yaml those that it names there.
SECTIONS: dict[str, tuple[str, ...]] = {
    "ingest": ("ingest",),
    "ingest_incoming": ("ingest", "retrain"),
    "compare_data": ("distill", "retrain"),
    "train_teacher": ("seed", "teacher"),
    "distill_features": ("seed", "taps", "student", "distill"),
    "train_interpreter": ("few_labels", "taps", "interpreter"),
    "distill_labels": ("taps", "student", "distill", "labels"),
    "finetune": ("few_labels", "student", "finetune"),
    "evaluate": ("few_labels", "recipes", "label_recipes", "compare", "evaluate"),
    "export_onnx": ("export",),
    "publish": ("publish",),
    "report": ("teachers", "recipes", "label_recipes", "compare"),
    "gate": ("export", "retrain"),
}


@dataclass(frozen=True)
class Resolved:
    """What a run depends on.

    Attributes:
        commit: that `data_rev` is now; "" for a folder.
        source: ingest.source, a place in the project.
        data_version: the last commit that changed what lies there; for a folder FILES and a digest of names, sizes and times.
        params: all settings that the run reads, of its recipe.
        teacher, recipe: names of the teacher and of the recipe without labels.
        settings: {step: its sections of them}, as plain data without null, which KFP's local runner does not take.
        fresh: {"init", "seed"} of each fine-tuning from random or ImageNet weights.
        mixed: the same of each label distillation, with what its recipe changes: {"init", "seed", "interpreter", "labels"}.
        seeds: of the fine-tunings from feature distillation.
    """

    commit: str
    source: str
    data_version: str
    params: Params
    teacher: str
    recipe: str
    settings: dict[str, dict[str, Any]]
    fresh: list[dict[str, Any]]
    mixed: list[dict[str, Any]]
    seeds: list[int]


def resolve(*, git_url: str, data_rev: str, overrides: list[str], pipeline: str) -> Resolved:
    """Read the settings of the project `git_url` at `data_rev`, and find out which pictures they name.

    Args:
        git_url: of a git repository; or, where `data_rev` is "", a folder, which is taken as it is.
        data_rev: commit, tag or branch.
        overrides: what differs from params.yaml, as `--set` takes it.
        pipeline: "pretrain", or "retrain", which has nothing to compare with but the champion.

    Raises:
        UserError: there is no such project or revision, a setting is impossible, or the pipeline would have nothing to compare.
    """
    for each in overrides:
        if not isinstance(each, str):
            raise UserError(f'settings: {each!r} is no text; write it as "KEY.KEY=VALUE", such as "distill.T=250"')
    if not git_url:
        raise UserError("git_url is empty; name the project's git repository")
    with tempfile.TemporaryDirectory() as scratch:
        clone = None if not data_rev and Path(git_url).is_dir() else Clone(git_url, data_rev, Path(scratch) / "project")
        folder = clone.folder if clone else Path(git_url)
        where = f"revision {clone.commit[:12]} of git_url" if clone else str(folder.absolute())
        params = settings_of(folder, overrides, where)
        source = params.ingest.source
        if clone:
            version = clone.last_change(parts_of(clone, source))
        else:
            check_source(folder, source)
            version = FILES + _digest_of_files(folder / source)
        commit = clone.commit if clone else ""
    if pipeline == "retrain":
        inits = [init for init in params.compare.inits if init not in FRESH]
        params = params.model_copy(update={"compare": params.compare.model_copy(update={"inits": inits})})
    recipe = check_comparison(params, pipeline)
    resolved = of_recipe(params, recipe).model_copy(update=_compared(params, recipe))

    def items(group: Container[str], settings: Callable[[str], dict[str, Any]] = lambda init: {}) -> list[dict[str, Any]]:
        inits = [init for init in params.compare.inits if init in group]
        return [{"init": init, "seed": seed, **settings(init)} for init in inits for seed in params.compare.seeds]

    def changes(name: str) -> dict[str, Any]:  # and not all settings, which would stand in every pass of a loop
        own = params.label_recipes[name]
        return {"interpreter": _without_null(own.interpreter), "labels": _without_null(own.labels)}

    return Resolved(
        commit=commit,
        source=source,
        data_version=version,
        params=resolved,
        teacher=params.recipes[recipe].teacher,
        recipe=recipe,
        settings={step: _without_null(resolved.section(*sections)) for step, sections in SECTIONS.items()},
        fresh=items(FRESH),
        mixed=items(params.label_recipes, changes),
        seeds=list(params.compare.seeds),
    )


PASSES = 33  # of a run's loops: Argo keeps all nodes of a run in one object of at most 1 MiB (tests/pipelines/test_size.py)


def check_comparison(params: Params, pipeline: str) -> str:
    """The recipe without labels that a pipeline runs.

    Raises:
        UserError: compare.inits names several, or a loop of the pipeline would have no pass, which KFP cannot collect, or more passes than
            Argo can keep.
    """
    inits = [init for init in params.compare.inits if pipeline == "pretrain" or init not in FRESH]
    wanted: dict[str, Iterable[str]] = {"a recipe without labels": params.recipes, "one of label_recipes": params.label_recipes}
    if pipeline == "pretrain":
        wanted["scratch or imagenet"] = FRESH
    for name, group in wanted.items():
        if not set(inits) & set(group):
            raise UserError(f"compare.inits = {params.compare.inits}: a pipeline compares a recipe without labels, at least one of "
                            f"label_recipes, and before a first champion one of scratch and imagenet; add {name}")  # fmt: skip
    used = list(dict.fromkeys(base_of(params, init) for init in inits if init not in FRESH))
    if len(used) > 1:
        raise UserError(
            f"compare.inits = {params.compare.inits} needs the recipes {', '.join(used)}: a pipeline runs one without labels and the "
            "label_recipes that build on it; name fewer, or compare by `dvc repro`"
        )
    if not params.recipes[used[0]].one_teacher:
        raise UserError(f"recipes.{used[0]} has no teacher of its own, and a pipeline trains one; compare with it by `dvc repro`")
    if params.recipes[used[0]].student:
        raise UserError(f"recipes.{used[0]}.student: a pipeline has one student for all; set it in the group student")
    if (passes := len(inits) * len(params.compare.seeds)) > PASSES:
        raise UserError(
            f"compare: {len(params.compare.seeds)} seeds of {len(inits)} initialisations are {passes} passes of the pipeline's loops, more "
            f"than the {PASSES} that Argo can keep of one run; use fewer of them, or `dvc repro`, which has no such limit"
        )
    return used[0]


def _compared(params: Params, recipe: str) -> dict[str, Any]:
    """The recipes of a run alone, so that another one changes nothing that its steps read."""
    with_labels = {name: each for name, each in params.label_recipes.items() if name in params.compare.inits}
    return {"recipes": {recipe: params.recipes[recipe]}, "label_recipes": with_labels}


def _without_null(value: Any) -> Any:
    """None as the word "null", which `restore_params` reads."""
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items()}
    return "null" if value is None else value


def _digest_of_files(place: Path) -> str:
    """Of names, sizes and times of what lies at `place`, or beside it where it is a list of files or stands for shards."""
    folder = place if place.is_dir() else place.parent

    def describe(name: str) -> bytes:
        path = posixpath.join(folder, name)
        found = os.stat(path) if os.path.exists(path) else None  # noqa: PTH110, PTH116 - see files.walk
        return b"\0".join([os.fsencode(name), str((found.st_size, found.st_mtime_ns) if found else ()).encode()])

    return digest_in_any_order(describe(name) for name in walk(folder))
