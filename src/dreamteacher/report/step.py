"""What the KFP UI shows for a finished step: the artifact's metadata, and a self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from pathlib import Path
from typing import Any

from dreamteacher.graph import IDENTITY
from dreamteacher.stage import flat, read_stage

PICTURES = 12  # with more, browsers load the page slowly
STYLE = (
    "body{font:14px sans-serif;margin:1em}table{border-collapse:collapse}img{max-width:100%}"
    "td,th{border:1px solid #ccc;padding:2px 8px;text-align:left}"
)


def fill_artifacts(folder: Path, out: Any, page: Any) -> None:
    """Fill the artifacts of a KFP step from the complete stage output `folder`.

    Args:
        folder: stage output with its stage.json.
        out: artifact of the output; its `metadata` gets `facts`.
        page: `dsl.HTML`; `write_page` writes its file.
    """
    out.metadata.update(facts(folder))
    write_page(folder, Path(page.path))


def facts(folder: Path) -> dict[str, Any]:
    """Metadata of an artifact: stage, digest, metrics, and, if it has them, data hash, classes, taps, backbone."""
    record = read_stage(folder)
    found = {"stage": record["stage"], "digest": record["digest"], "version": record["version"], **record["metrics"]}
    # The KFP UI would show a property `name` in place of the artifact's own name.
    found |= {"teacher" if key == "name" else key: record["params"][key] for key in IDENTITY if key in record["params"]}
    if student := record["params"].get("student"):
        found["backbone"] = student["backbone"]
    for file, keys in (("dataset.json", ("hash", "task", "classes")), ("teacher.json", ("taps",)), ("task.json", ("task", "classes"))):
        if (folder / file).exists():
            described = json.loads((folder / file).read_text())
            found |= {key: described[key] for key in keys}
    return found


def write_page(folder: Path, page: Path) -> None:
    """Write one HTML file with metrics, pictures, curves and settings of the complete stage output `folder`."""
    record = read_stage(folder)
    parts = [_table(record["metrics"])]
    if (folder / "verdict.json").exists():
        checks = json.loads((folder / "verdict.json").read_text())["checks"]
        parts += ["<h3>Gates</h3>", _table({f"{'passed' if c['passed'] else 'FAILED'}: {c['name']}": c["words"] for c in checks})]
    pictures = sorted(path for path in folder.rglob("*.png") if path.is_file())
    for path in pictures[:PICTURES]:
        parts += [f"<h3>{html.escape(path.relative_to(folder).as_posix())}</h3>", _image(path.read_bytes())]
    if len(pictures) > PICTURES:
        parts.append(f"<p>{len(pictures) - PICTURES} more pictures are in the artifact.</p>")
    if (folder / "curves.csv").exists():
        parts += ["<h3>Curves</h3>", _image(_curves(folder / "curves.csv"))]
    parts += ["<h3>Settings</h3>", _table(flat(record["params"]))]
    parts += ["<h3>Versions</h3>", _table(record["versions"])]
    _save(page, record["stage"], parts)


def write_facts(page: Path, step: str, facts: dict[str, Any]) -> None:
    """Write one HTML file with a table, for a step without a stage output."""
    _save(page, step, [_table(flat(facts))])


def _save(page: Path, title: str, parts: list[str]) -> None:
    name = html.escape(title)
    page.parent.mkdir(parents=True, exist_ok=True)
    head = f"<!doctype html><meta charset=utf-8><title>{name}</title><style>{STYLE}</style><h2>{name}</h2>"
    page.write_text("\n".join([head, *parts]))


def _table(rows: dict[str, Any]) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(f'{value:.6g}' if isinstance(value, float) else str(value))}</td></tr>"
        for key, value in rows.items()
    )
    return f"<table>{cells}</table>"


def _image(png: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _curves(path: Path) -> bytes:
    """A PNG with one plot per column over `step`."""
    from matplotlib.figure import Figure

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "step"]
    figure = Figure(figsize=(4 * min(len(names), 3), 2.5 * -(-len(names) // 3)), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(-(-len(names) // 3), min(len(names), 3), number + 1)
        points = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="." if len(points) < 20 else "")
        axes.set_title(name, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=80)
    return picture.getvalue()
