"""The report of a run as one self-contained HTML page, with pictures, plots and style sheet embedded."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dreamteacher.report import learning, records
from dreamteacher.report.assessed import assessment
from dreamteacher.report.pictures import Album
from dreamteacher.report.run import Run
from dreamteacher.report.verdict import comparison

MAX_PICTURE_BYTES = 2_400_000  # budget of all pictures in a page


def render(run: Run) -> str:
    """The HTML page of `run`, titled by its data source; all names given by users are escaped."""
    album = Album(MAX_PICTURE_BYTES)
    sections: dict[str, Any] = {
        "comparison": comparison(run),
        "assessment": assessment(run),
        "tuning": learning.fine_tuning(run, album),
        "teachers": learning.teachers(run, album),
        "recipes": learning.recipes(run, album),
        "label_recipes": learning.label_recipes(run),
        "data": records.data(run),
        "drift": records.drift(run),
        "gates": records.gates(run),
        "cost": records.cost(run),
        "versions": records.versions(run),
        "settings": records.settings(run),
    }
    name = run.data.params["ingest"]["source"] if run.data else "A run without its data"
    left_out = [str(path.relative_to(path.parents[1])) for path in album.left_out]
    return _templates().get_template("report.html").render(name=name, run=run, left_out=left_out, **sections)


@cache
def _templates() -> Environment:
    loader = PackageLoader("dreamteacher.report")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.filters["code"] = _code
    return templates


def _code(text: str) -> Markup:
    """Escape text, and render text between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
