"""All settings as a table: names, values in words, defaults and meanings, for messages and docs/parameters.md."""

from __future__ import annotations

import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from dreamteacher.settings.schema import Params
from dreamteacher.settings.section import Section


def known_keys() -> list[str]:
    """Dotted names of all settings, in the order of schema.py."""
    return [key for key, _, _ in describe()]


def describe() -> list[tuple[str, str, Any]]:
    """(dotted name, type and range in words, pydantic field) of every setting, from which docs/parameters.md is made."""
    rows = []
    for name, field in Params.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            for inner, inner_field in field.annotation.model_fields.items():
                rows.append((f"{name}.{inner}", _words(inner_field.annotation, inner_field.metadata), inner_field))
        else:
            rows.append((name, _words(field.annotation, field.metadata), field))
    return rows


def markdown() -> str:
    """The table of docs/parameters.md: every setting with its values, default and meaning."""
    rows = ["| setting | values | default | meaning |", "| --- | --- | --- | --- |"]
    for name, values, setting in describe():
        default = json.dumps(setting.get_default(call_default_factory=True), ensure_ascii=False, default=_plain)
        rows.append(f"| `{name}` | {values} | `{default}` | {setting.description} |")
    return "\n".join(rows)


def _plain(section: Section) -> dict[str, Any]:
    return section.model_dump(exclude_unset=True)


def _words(kind: Any, metadata: Any = ()) -> str:
    origin = get_origin(kind)
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of", "min_length": "of length >="}
    limits = [
        f"{sign} {getattr(part, name):.10g}"
        for constraint in metadata
        for part in getattr(constraint, "metadata", None) or [constraint]
        for name, sign in signs.items()
        if getattr(part, name, None) is not None
    ]
    if origin is Annotated:
        return _words(get_args(kind)[0], kind.__metadata__)
    if origin is Literal:
        words = ", ".join(str(choice) for choice in get_args(kind))
    elif origin in (Union, types.UnionType):
        words = " or ".join("null" if part is type(None) else _words(part) for part in get_args(kind))
    elif origin is dict:
        inner = _words(get_args(kind)[1])
        words = f"table of {inner}" if inner.startswith(("float", "int")) else "groups by name"
    elif origin in (list, tuple):
        words = f"{origin.__name__} of {_words(get_args(kind)[0])}"
    else:
        words = kind.__name__
    return " ".join([words, ", ".join(limits)]).strip()
