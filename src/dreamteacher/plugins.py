"""What is found by name: our own modules, and those that installed packages offer as entry points."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dreamteacher.errors import UserError, first_line


def load_plugin(group: str, name: str, built_in: dict[str, str], noun: str) -> Any:
    """The module or object that `name` stands for.

    Names stand in files that come from elsewhere, such as task.json, so they lead to installed packages that offer them, and nowhere else.

    Args:
        group: of the entry points of other packages. Our own win, so no package can replace them.
        built_in: our own: name -> "module" or "module:attribute".
        noun: what it is called in messages, such as "task".

    Raises:
        UserError: nothing has this name, or what has it cannot be imported.
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
