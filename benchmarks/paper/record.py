"""The figures of a table on a set as JSON, to which sessions and machines add; figures of other settings are never put beside them."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks.timing import describe_machine
from dreamteacher.errors import UserError
from dreamteacher.git_access import output_of
from dreamteacher.settings.schema import Params
from dreamteacher.stage import flat

KEY = ("init", "labels", "draw", "pretraining")  # of a model's row
KEYS = {"models": KEY, "pretraining": ("init", "pretraining"), "assessments": ("labels",)}
VERSIONS = ("dreamteacher", "torch", "timm", "diffusers")


class Record:
    """A JSON file, read and replaced as a whole; several processes may add to it.

    head: what all its figures share: table, set, figure, data, settings. inits: what makes each initialisation. The file also has
    `budget`, `sessions` (machine, versions, commit, command, first and last day), and `assessments`, `pretraining` and `models`, a row
    each.
    """

    def __init__(self, path: Path, head: dict[str, Any], inits: dict[str, Any], budget: dict[str, Any], session: dict[str, Any]):
        self.path, self.session = path, session
        with self._changing() as content:
            self._check(content, head, inits)
            first = head | {"budget": budget, "inits": content["inits"] | inits}
            rest = {key: content[key] for key in ("sessions", "assessments", "pretraining", "models")}
            content.clear()
            content.update(first | rest)

    def add(self, rows: str, row: dict[str, Any]) -> None:
        """Add a row to one of KEYS, unless one of the same key is there."""
        names = KEYS[rows]
        with self._changing() as content:
            if any(all(other[name] == row[name] for name in names) for other in content[rows]):
                return
            content[rows].append(row | {"session": self._session(content)})
            content[rows].sort(key=lambda each: [_order(each[name]) for name in names])

    def _session(self, content: dict[str, Any]) -> int:
        """The number of this session among `sessions`; what differs in nothing but the day is one."""
        today = datetime.now(UTC).date().isoformat()
        for number, other in enumerate(content["sessions"]):
            if {key: value for key, value in other.items() if key not in ("first", "last")} == self.session:
                other["last"] = today
                return number
        content["sessions"].append(self.session | {"first": today, "last": today})
        return len(content["sessions"]) - 1

    def _check(self, content: dict[str, Any], head: dict[str, Any], inits: dict[str, Any]) -> None:
        if not content["models"]:
            return
        made = {key: content[key] for key in head}
        told = {"inits": {name: content["inits"][name] for name in inits if name in content["inits"]}}
        new = {"inits": {name: inits[name] for name in told["inits"]}}
        old_flat, new_flat = flat(made | told), flat(head | new)
        # What the record lacks is a setting that did not exist yet, and did what it does by default.
        defaults = flat({"settings": Params().model_dump(mode="json")})
        if differing := [key for key in {**old_flat, **new_flat} if old_flat.get(key, defaults.get(key)) != new_flat.get(key)]:
            key = differing[0]
            raise UserError(
                f"{self.path} holds figures of {key} = {old_flat.get(key)!r}, and this is {new_flat.get(key)!r}"
                + (f" ({len(differing) - 1} more differ)" if len(differing) > 1 else "")
                + "; give it a name of its own with --as, or move that file away"
            )

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The content, which is written when the block ends; nobody else changes it meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = read(self.path)
            yield content
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            temporary.write_text(to_json(content))
            temporary.replace(self.path)


def read(path: Path) -> dict[str, Any]:
    """A record's content; empty lists where there is no file.

    Raises:
        UserError: it is no record.
    """
    empty: dict[str, Any] = {"sessions": [], "pretraining": [], "models": [], "inits": {}}
    later: dict[str, Any] = {"assessments": []}  # which older records lack
    if not path.exists():
        return empty | later
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if missing := [key for key in empty if key not in content]:
            raise ValueError(f"it has no {missing[0]}")
    except ValueError as error:
        raise UserError(f"{path} is no record of figures ({error}); restore it, or move it away") from error
    return later | content


def to_json(content: dict[str, Any]) -> str:
    """Each row, and each group of settings, on a line, so that a change of one is a line of a diff."""
    lines = []
    for key, value in content.items():
        texts = [json.dumps(row, ensure_ascii=False) for row in value] if isinstance(value, list) else []
        if isinstance(value, dict):
            texts = [f"{json.dumps(name)}: {json.dumps(inner, ensure_ascii=False)}" for name, inner in value.items()]
        if texts:
            opening, closing = "[]" if isinstance(value, list) else "{}"
            lines.append(f" {json.dumps(key)}: {opening}\n  " + ",\n  ".join(texts) + f"\n {closing}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def describe_session(words: list[str]) -> dict[str, Any]:
    """Machine, versions, commit and command, without this machine's paths."""
    machine = describe_machine() | {"processor": _processor(), "cores": os.cpu_count()}
    changes = output_of("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "machine": machine,
        # A checkout that is not installed has no version; the commit says which it is.
        "versions": {name: each.version for name in VERSIONS for each in distributions(name=name)} | {"python": platform.python_version()},
        "commit": output_of("git", "rev-parse", "--short=10", "HEAD") + "+" * bool(changes),
        "command": " ".join(["python -m benchmarks.paper", *map(without_paths, words)]),
    }


def without_paths(text: str) -> str:
    """`text` with the last names alone of absolute paths."""
    return re.sub(r"(^|[\s='\"])/(?:[^\s/]+/)*", r"\1", text)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _order(value: Any) -> tuple[bool, Any]:
    """None, all labels, last."""
    return value is None, "" if value is None else value
