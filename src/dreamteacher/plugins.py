"""Plugins by name: built-in modules and entry points of installed packages."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dreamteacher.errors import UserError, first_line


def load_plugin(group: str, name: str, built_in: dict[str, str], noun: str) -> Any:
    """The module or object registered as `name`.

    Names come from untrusted files such as task.json, so only built-in ones and entry points of installed packages are loaded.

    Args:
        group: entry point group of other packages. Built-in names take precedence, so no package can replace them.
        built_in: name -> "module" or "module:attribute".
        noun: the kind of plugin in messages, such as "task".

    Raises:
        UserError: there is no such name, or it cannot be imported.
    """
    entries = {entry.name: entry for entry in entry_points(group=group)}
    entries |= {own: EntryPoint(own, value, group) for own, value in built_in.items()}
    if name not in entries:
        near = difflib.get_close_matches(name, entries, 1) or sorted(entries)
        raise UserError(f"no {noun} is called {name!r}; name {' or '.join(near)}, or install the package that offers it")
    try:
        return entries[name].load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"{noun} {name!r} cannot be loaded ({first_line(error)}); install {entries[name].value} again") from error
