"""Reading and writing settings: params.yaml, `--set KEY=VALUE`, and the sections that a pipeline passes to a step."""

from __future__ import annotations

import io
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from dreamteacher.errors import UserError
from dreamteacher.files import replace_file
from dreamteacher.project_root import refuse_subfolder
from dreamteacher.settings import recipes
from dreamteacher.settings.explain import explain
from dreamteacher.settings.schema import Params
from dreamteacher.settings.section import Section
from dreamteacher.settings.table import describe


class _Yaml(yaml.SafeLoader):
    """YAML with `1e-3` (no dot) as a number, as DVC reads it; YAML 1.1 reads it as text. Duplicate keys, and numbers that YAML 1.1 reads
    differently from other readers (010 as 8, 1:30 as 90), are refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; refuses duplicate keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} appears twice", key.start_mark)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """An integer; refuses notations that other readers read as another number."""
        if re.match(r"[-+]?0[0-9_]*[0-9]$|.*:", node.value):
            problem = f"{node.value} is read differently by other programs; write it without a leading 0 and without colons, or in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_yaml_int(node)


_Yaml.add_constructor("tag:yaml.org,2002:int", _Yaml.construct_yaml_int)

_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))
# PyYAML raises these for text such as 2020-13-45, 0x_ or brackets nested a thousand deep.
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


def load_params(path: Path | None = Path("params.yaml"), overrides: list[str] | None = None) -> Params:
    """Read `path` (None or, for the default name only, a missing file: all defaults) and apply `KEY.KEY=VALUE` overrides.

    Values of overrides are YAML, so `null`, `[0, 1]` and `1e-3` mean what they mean in the file.

    Raises:
        UserError: the file is missing (of the default name: and a folder above is a project) or not YAML, a key is unknown (the nearest
            known one is named), a value is impossible.
    """
    values: Any = {}
    where = "the defaults"
    if path == Path("params.yaml"):
        refuse_subfolder()
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
        params = Params.model_validate(values)
        recipes.check(params)
        return params
    except ValidationError as error:
        raise UserError(explain(error, where if not overrides else f"{where} with --set")) from error
    except RecursionError:
        raise UserError(f"{where}: a value contains itself") from None


def restore_params(changes: dict[str, Any] | None = None, **sections: Any) -> Params:
    """Settings from the sections that a pipeline passes to a step: the result of `Params.section`, or its YAML text, where the word
    "null" may stand for null. `changes` are the overrides of a teacher or recipe, from `recipes.changes`.

    They were validated with all others when the run began; checks across groups are not possible without the other groups. Other sections
    have their defaults, and the step does not read them.

    Raises:
        UserError: a value is invalid here, such as a loss term whose package is missing in this step's image.
    """
    plain = {name: _with_null(yaml.load(value, _Yaml) if isinstance(value, str) else value) for name, value in sections.items()}
    for name, change in _with_null(changes or {}).items():
        plain[name] = {**plain[name], **change} if isinstance(change, dict) else change
    types: dict[str, Any] = {name: Params.model_fields[name].annotation for name in plain}
    checked = {}
    for name, value in plain.items():
        try:
            checked[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            raise UserError(explain(error, f"settings of this step, {name}")) from error
    return Params().model_copy(update=checked)


def _with_null(value: Any) -> Any:
    """Replace the word "null" by None; KFP's local runner does not support null."""
    if not isinstance(value, dict):
        return value
    return {key: None if inner == "null" else _with_null(inner) for key, inner in value.items()}


def write_sections(path: Path, params: Params) -> None:
    """Write the result of `restore_params` for the processes that a step starts."""
    path.write_text(yaml.safe_dump(params.model_dump(mode="json")))


def read_sections(path: Path) -> Params:
    """Read the file of `write_sections`. Like `restore_params`, it makes no checks across groups."""
    return restore_params(**yaml.safe_load(path.read_text()))


def save_overrides(path: Path, overrides: list[str]) -> Params:
    """Write `KEY.KEY=VALUE` overrides into the file `path`, preserving comments and order; returns the resulting settings.

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
        text = io.StringIO()
        editor.dump(values, text)
        replace_file(path, text.getvalue())
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
    """The default of a setting that is a table, such as distill.objectives or recipes, of which an override changes one entry; else {}."""
    default = next((field.default for key, _, field in describe() if key == name), None)
    if not isinstance(default, dict):
        return {}
    return {key: value.model_dump(exclude_unset=True) if isinstance(value, Section) else deepcopy(value) for key, value in default.items()}


def _problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:  # str(error) ends with an excerpt of the file
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    return (str(error).splitlines() or [type(error).__name__])[-1].strip()


def _groups() -> set[str]:
    return {
        name for name, field in Params.model_fields.items() if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
