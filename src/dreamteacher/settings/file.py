"""Reading and writing settings: params.yaml, `--set KEY=VALUE`, and the sections that a pipeline hands to a step."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from dreamteacher.errors import UserError
from dreamteacher.settings.schema import Params, Section
from dreamteacher.settings.table import describe, known_keys


class _Yaml(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` (no dot) as text; people, and DVC, mean the number."""


_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))
# PyYAML's constructors let these out for text such as 2020-13-45, 0x_ or brackets nested a thousand deep.
MOVED = {"distill.at_weight": "distill.objectives: {{mse: 1, at: {}}}"}  # settings of earlier versions, and what they are now
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


def load_params(path: Path | None = Path("params.yaml"), overrides: list[str] | None = None) -> Params:
    """Read `path` (None or, for the default name only, a missing file: all defaults) and apply `KEY.KEY=VALUE` overrides.

    Values of overrides are YAML, so `null`, `[0, 1]` and `1e-3` mean what they mean in the file.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown (the nearest known one is named), a value is impossible.
    """
    values: Any = {}
    where = "the defaults"
    if path is not None and (path.exists() or path != Path("params.yaml")):
        where = str(path)
        try:
            values = yaml.load(path.read_text(), _Yaml) or {}
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; name a params file that exists") from error
        except _YAML_ERRORS as error:
            raise UserError(f"{path} is not valid YAML: {_problem(error)}") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} must hold settings as `key: value`, not a {type(values).__name__}")
        # A group whose lines are all commented out reads as null.
        values = {key: value for key, value in values.items() if value is not None or key not in _groups()}
    for override in overrides or []:
        _apply(values, override)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, where if not overrides else f"{where} with --set")) from error
    except RecursionError:
        raise UserError(f"{where}: a value contains itself") from None


def restore_params(**sections: Any) -> Params:
    """Settings of which only some sections are known, as a pipeline hands them to a step: what `Params.section` gave, or YAML text of it;
    a value that is null may be the word "null".

    They were checked with all others when the run began, and without those a check across groups would say nothing. The rest has its
    defaults, and the step does not read it.
    """
    plain = {name: yaml.load(value, _Yaml) if isinstance(value, str) else value for name, value in sections.items()}
    for name, group in plain.items():
        if isinstance(group, dict):  # KFP's local runner takes no null, so a pipeline says it by the word
            plain[name] = {key: None if value == "null" else value for key, value in group.items()}
    types: dict[str, Any] = {name: Params.model_fields[name].annotation for name in plain}
    checked = {}
    for name, value in plain.items():
        try:
            checked[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:  # such as a term whose package this step's image lacks
            raise UserError(_explain(error, f"settings of this step, {name}")) from error
    return Params().model_copy(update=checked)


def write_sections(path: Path, params: Params) -> None:
    """What `restore_params` gave, for the processes that a step starts."""
    path.write_text(yaml.safe_dump(params.model_dump(mode="json")))


def read_sections(path: Path) -> Params:
    """What `write_sections` wrote. Like `restore_params`, it holds no group against another: only some are those of the run."""
    return restore_params(**yaml.safe_load(path.read_text()))


def save_overrides(path: Path, overrides: list[str]) -> Params:
    """Write `KEY.KEY=VALUE` overrides into the file `path`, whose comments and order stay; the settings it then holds.

    Raises:
        UserError: as load_params does; the file is unchanged then.
    """
    from ruamel.yaml import YAML

    params = load_params(path, overrides)
    if overrides:
        editor = YAML()
        editor.preserve_quotes = True
        editor.width = 1000
        editor.indent(mapping=2, sequence=4, offset=2)
        values = editor.load(path.read_text())
        for override in overrides:
            _apply(values, override)
        with path.open("w") as file:
            editor.dump(values, file)
    return params


def _apply(values: dict[str, Any], override: str) -> None:
    key, sep, text = override.partition("=")
    if not sep or not all(key.strip().split(".")):
        raise UserError(f"--set {override}: write it as KEY.KEY=VALUE, for example distill.T=250")
    *parents, last = key.strip().split(".")
    for depth, parent in enumerate(parents):
        values = values.setdefault(parent, _default_table(".".join(parents[: depth + 1])))
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: {parent} is a value, not a group of settings")
    try:
        values[last] = yaml.load(text, _Yaml)
    except _YAML_ERRORS as error:
        raise UserError(f"--set {override}: {text!r} is not a YAML value: {_problem(error)}") from error


def _default_table(name: str) -> dict[str, Any]:
    """The default of a setting that is a table, such as distill.objectives, of which an override changes one entry; else an empty one."""
    default = next((field.default for key, _, field in describe() if key == name), None)
    return dict(default) if isinstance(default, dict) else {}


def _problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:  # whose text ends with a drawing
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    return (str(error).splitlines() or [type(error).__name__])[-1].strip()


def _groups() -> set[str]:
    return {
        name for name, field in Params.model_fields.items() if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def _explain(error: ValidationError, where: str) -> str:
    """One line for the first problem: where it stands, what is wrong, what is possible."""
    problem = error.errors()[0]
    if not problem["loc"]:
        return f"{where}: {problem['ctx']['error']}"
    location = [str(part) for part in problem["loc"]]
    name = ".".join(part for part in location if part.replace("_", "").isalnum() and not part.startswith("function"))
    more = "" if error.error_count() == 1 else f" (and {error.error_count() - 1} more)"
    if name in MOVED and problem["type"] == "extra_forbidden":
        return f"{where}: {name} is now part of another setting; write {MOVED[name].format(problem['input'])}"
    if problem["type"] == "extra_forbidden":
        known = known_keys()
        if isinstance(problem["input"], dict) and problem["input"]:
            name += f".{next(iter(problem['input']))}"
        near = difflib.get_close_matches(name, known, 1, 0.5) or [k for k in known if k.split(".")[-1] == location[-1]]
        return f"{where}: unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}") + more
    shown = repr(problem["input"])
    return f"{where}: {name} = {shown if len(shown) < 80 else shown[:77] + '...'} is not possible: {problem['msg']}{more}"
