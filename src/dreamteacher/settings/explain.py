"""Pydantic's validation errors as one line."""

from __future__ import annotations

import difflib
import re

from pydantic import ValidationError

from dreamteacher.settings.table import known_keys

MOVED = {  # settings of earlier versions -> their replacement
    "distill.at_weight": "distill.objectives: {{mse: 1, at: {}}}",
    "compare.modes": "a recipe for each: label_recipes: {{NAME: {{features: RECIPE, labels: {{mode: NAME}}}}}}, of {}",
}


def explain(error: ValidationError, where: str) -> str:
    """One line for the first problem: its location, what is wrong, what is valid."""
    problem = error.errors()[0]
    if not problem["loc"]:
        return f"{where}: {problem['ctx']['error']}"
    location, name = [str(part) for part in problem["loc"]], _setting(problem["loc"])
    # For a setting of several types pydantic reports an error for each type.
    wrong = [each["msg"].removeprefix("Value error, ") for each in error.errors() if _setting(each["loc"]) == name]
    more = "" if error.error_count() == len(wrong) else f" (and {error.error_count() - len(wrong)} more)"
    if name in MOVED and problem["type"] == "extra_forbidden":
        return f"{where}: {name} is now part of another setting; write {MOVED[name].format(problem['input'])}"
    if problem["type"] == "extra_forbidden":
        known = known_keys()
        name = ".".join(filter(None, (_setting(problem["loc"][:-1]), location[-1])))  # the last as it is written, such as `fine-tune`
        if isinstance(problem["input"], dict) and problem["input"]:
            name += f".{next(iter(problem['input']))}"
        if name in known:
            group, _, key = name.rpartition(".")
            return f"{where}: {name!r} is one key; write the group {group!r}, and below it, indented, {key!r}{more}"
        near = difflib.get_close_matches(name, known, 1, 0.5) or [k for k in known if k.split(".")[-1] == location[-1]]
        return f"{where}: unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}") + more
    if problem["type"] == "missing":
        return f"{where}: {name} is missing, and has no default{more}"
    shown = repr(problem["input"])
    return f"{where}: {name} = {shown if len(shown) < 80 else shown[:77] + '...'} is not possible: {', or '.join(wrong)}{more}"


def _setting(location: tuple[int | str, ...]) -> str:
    """The dotted name of the setting at an error's location, without the type names that pydantic adds to it."""
    return ".".join(part for part in map(str, location) if re.sub("[_.]", "", part).isalnum() and not part.startswith("function"))
