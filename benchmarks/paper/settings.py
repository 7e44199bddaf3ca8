"""What is compared, and on what: a table's settings file over those of a set."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params
from dreamteacher.settings.recipes import base_of
from dreamteacher.settings.schema import ALL_TEACHERS, FRESH, Params
from dreamteacher.stage import NOT_DIGESTED, digest_of, without
from dreamteacher.teachers.folder import find_pretrained

HERE = Path(__file__).parent
TABLES, SETS = HERE / "tables", HERE / "sets"
GROUPS = ("teachers", "recipes", "label_recipes", "compare")  # of a table's file that are settings
# What a figure does not depend on, or what each row says itself.
NOT_COMPARED = {"seed", "few_labels", "compare", "teachers", "recipes", "label_recipes", "export", "publish", "retrain", "tune", "evaluate"}


@dataclass(frozen=True)
class Table:
    """A table's settings file.

    title: of the page's heading. groups: settings that take the place of the set's. control: the initialisation, besides scratch, over
    which gains are counted: distilled from a random teacher. paper: the figures that it is compared with, {"figure": what they are,
    "rows": {init: numbers}}, or None. curve: whether each is trained on every number of labels of the set instead of few_labels.
    """

    title: str
    groups: dict[str, Any]
    control: str
    paper: dict[str, Any] | None = None
    curve: bool = False


def table_names() -> list[str]:
    """Of the settings files."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def set_names() -> list[str]:
    """Of the sets that have a settings file."""
    return sorted(path.stem for path in SETS.glob("*.yaml"))


def read_table(name: str) -> Table:
    """The table of a name."""
    values = yaml.safe_load((TABLES / f"{name}.yaml").read_text())
    groups = {group: values.pop(group) for group in GROUPS}
    return Table(groups=groups, **values)


def set_file(name: str) -> Path:
    """The settings of a set: one of `set_names`, or a settings file of the user's own.

    Raises:
        UserError: there is neither.
    """
    path = SETS / f"{name}.yaml"
    if path.exists():
        return path
    if Path(name).is_file():
        return Path(name)
    raise UserError(f"there is no set {name!r}; name one of {', '.join(set_names())}, or a settings file such as params.yaml")


def short_name(name: str) -> str:
    """What the folder of a set's results is called."""
    path = Path(name)
    return name if path.suffix == "" else path.stem if path.stem != "params" else path.absolute().parent.name


def resolve(table: Table, data_set: str, source: Path | None, overrides: list[str]) -> tuple[Params, list[int | None]]:
    """The settings of `table` on a set, and its numbers of labels for a learning curve.

    Raises:
        UserError: there is no such set, or the settings are impossible.
    """
    path = set_file(data_set)
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    counts = values.pop("label_counts", None)
    values |= table.groups
    values["compare"] = {"inits": table.groups["compare"]["inits"], "seeds": [0]}
    values["export"] = {"init": values["compare"]["inits"][0], "seed": 0}
    values["ingest"] = (values.get("ingest") or {}) | ({"source": str(source.absolute())} if source else {})
    beside = Path(str(values["ingest"].get("source", "")))
    if not source and "://" not in str(beside) and (path.parent / beside).exists():
        values["ingest"]["source"] = str((path.parent / beside).absolute())
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / path.name).write_text(yaml.safe_dump(values, sort_keys=False))  # the first recipe is the reference
        params = load_params(Path(scratch) / path.name, overrides)
    return params, counts or [5, 10, 20, 50, None]


def common(params: Params) -> dict[str, Any]:
    """The settings that all figures of a table share, as plain data without this machine's paths."""
    plain = without(params.model_dump(mode="json"), NOT_DIGESTED)
    unused = NOT_COMPARED | (set() if params.label_recipes else {"interpreter", "labels"})
    plain = {key: value for key, value in plain.items() if key not in unused}
    plain["ingest"]["source"] = Path(params.ingest.source).name
    plain["teacher"] = _by_content(plain["teacher"])
    return plain


def definition(params: Params, init: str) -> dict[str, Any]:
    """What besides the common settings makes the initialisation `init`: its recipes and teachers, as plain data."""
    if init in FRESH:
        return {}
    recipe = params.recipes[base_of(params, init)]
    names = list(params.teachers) if recipe.teacher == ALL_TEACHERS else [recipe.one_teacher] if recipe.one_teacher else []
    found: dict[str, Any] = {"recipe": recipe.model_dump(mode="json", exclude_defaults=True)}
    found["teachers"] = {name: _by_content(params.teachers[name]) for name in names}
    if init in params.label_recipes:
        found["label_recipe"] = params.label_recipes[init].model_dump(mode="json", exclude_defaults=True)
    return found


def _by_content(teacher: dict[str, Any]) -> dict[str, Any]:
    """The settings of a teacher with what `pretrained` holds instead of where it lies."""
    if not teacher.get("pretrained"):
        return teacher
    folder = find_pretrained(teacher["pretrained"])
    return teacher | {"pretrained": f"{folder.name} {digest_of(folder)[:12]}"}
