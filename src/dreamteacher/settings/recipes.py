"""The settings of each teacher and recipe: the common settings with its overrides."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from dreamteacher.errors import UserError
from dreamteacher.settings.explain import explain
from dreamteacher.settings.presets import GENERATE_ONLY_KINDS
from dreamteacher.settings.schema import FRESH, Params


def of_teacher(params: Params, name: str) -> Params:
    """`params` with the overrides of one of `teachers` applied.

    Raises:
        UserError: there is no such teacher, or its settings are invalid.
    """
    return _with(params, f"teachers.{name}", teacher=_get(params.teachers, name, "teachers"))


def of_recipe(params: Params, name: str) -> Params:
    """`params` with the overrides of one of `recipes` or `label_recipes`: teacher, taps, student, distill, interpreter and labels.

    Raises:
        UserError: there is no such recipe, or its settings are invalid.
    """
    with_labels = params.label_recipes.get(name)
    recipe = _get(params.recipes, base_of(params, name), "recipes")
    changes: dict[str, Any] = {
        "teacher": _get(params.teachers, recipe.one_teacher, "teachers") if recipe.one_teacher else {},
        "student": recipe.student,
        "distill": recipe.distill,
    }
    if recipe.taps is not None:
        changes["taps"] = recipe.taps
    if with_labels:
        changes |= {"interpreter": with_labels.interpreter, "labels": with_labels.labels}
    resolved = _with(params, f"{'label_recipes' if with_labels else 'recipes'}.{name}", **changes)
    if with_labels and resolved.teacher.kind in GENERATE_ONLY_KINDS:
        raise UserError(
            f"label_recipes.{name} builds on a teacher of kind {resolved.teacher.kind!r}, which cannot encode"
            " labelled pictures; build it on a recipe of another teacher, or remove it, also from compare.inits"
        )
    return resolved


def of_init(params: Params, name: str) -> Params:
    """`params` with the student for fine-tuning from `name`: its recipe's, or the common one for scratch and imagenet."""
    return params if name in FRESH else of_recipe(params, name)


def base_of(params: Params, name: str) -> str:
    """The recipe without labels that a recipe or an initialisation builds on; the first one for scratch and imagenet."""
    if name in FRESH:
        return next(iter(params.recipes))
    return params.label_recipes[name].features if name in params.label_recipes else name


def bases(params: Params) -> list[str]:
    """The recipes without labels that are in compare.inits or that those build on."""
    return list(dict.fromkeys(base_of(params, init) for init in params.compare.inits if init not in FRESH))


def changes(params: Params, resolved: Params, *sections: str) -> dict[str, Any]:
    """Differences of `sections` between `resolved`, the settings of a teacher or recipe, and `params`; an input of `restore_params`."""
    before, after = params.section(*sections), resolved.section(*sections)
    return {
        name: {key: inner for key, inner in value.items() if inner != before[name][key]} if isinstance(value, dict) else value
        for name, value in after.items()
        if value != before[name]
    }


def check(params: Params) -> None:
    """Raises UserError if the settings of a teacher or a recipe are invalid."""
    for name in params.teachers:
        of_teacher(params, name)
    for name in [*params.recipes, *params.label_recipes]:
        of_recipe(params, name)


def _get(group: dict[str, Any], name: str, what: str) -> Any:
    if name not in group:
        raise UserError(f"{what} has no {name!r}; it has {', '.join(group)}")
    return group[name]


def _with(params: Params, where: str, **changes: Any) -> Params:
    """`params` with `changes` of groups or values; `where` names their place in params.yaml for messages."""
    changes = {name: value for name, value in changes.items() if value != {}}
    if not changes:
        return params
    values = params.model_dump(exclude_unset=True)
    for name, change in changes.items():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, where)) from error
