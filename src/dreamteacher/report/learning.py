"""Training sections of the report: teachers and samples, recipes and explained variance, fine-tuning."""

from __future__ import annotations

import re
from typing import Any

from dreamteacher.data.drawing import class_colours, cycled_colours
from dreamteacher.report.charts import curves
from dreamteacher.report.pictures import Album
from dreamteacher.report.records import CLASSES
from dreamteacher.report.run import Output, Run, Table

MAPS, OVERLAYS, SAMPLES = 4, 12, 1  # maximum pictures per recipe, comparison and teacher
COLLAPSED = 0.02  # embedding spread below which the backbone has collapsed
VARIANCE, WITHIN = "explained_variance", "explained_within"
PART = re.compile(rf"(ev|{VARIANCE})_(.+)")  # metric of a tap, or of a teacher of a team


def teachers(run: Run, album: Album) -> list[dict[str, Any]]:
    """Facts, loss curve and samples of each teacher."""
    return [_teacher(name, output, album) for name, output in run.below("teachers").items()]


def _teacher(name: str, output: Output, album: Album) -> dict[str, Any]:
    settings, described = output.params.get("teacher", {}), output.json("teacher.json")
    trained_on = described.get("trained_on") or {}
    facts = {
        "kind": str(described.get("kind", settings.get("kind", "unknown"))),
        "weights": f"taken from {settings['pretrained']!r}" if settings.get("pretrained") else "trained here",
        "trained on": f"{trained_on['pictures']} pictures" if trained_on.get("pictures") else "",
        "resolution": f"{described['resolution']} px" if described.get("resolution") else "",
        "taps": ", ".join(f"stride {tap['stride']} ({tap['channels']} channels)" for tap in described.get("taps", [])),
        "loss": f"{output.metrics['loss']:.4g}" if output.metrics.get("loss") else "",
    }
    points = output.curve("loss")
    return {
        "name": name,
        "facts": {key: value for key, value in facts.items() if value},
        "curve": curves({name: points}, "step", "loss") if len(points) > 1 else None,
        "samples": album.add_all(output.pictures("samples.png")[:SAMPLES], f"Samples of the teacher {name}, grid"),
    }


def recipes(run: Run, album: Album) -> dict[str, Any]:
    """Recipes without labels: table, curves, explained variance by tap, and feature maps of teacher and student."""
    outputs = {name: output for name, output in run.below("backbones").items() if output.record["stage"] == "distill-features"}
    explained = {name: output.curve(VARIANCE) for name, output in outputs.items()}
    losses = {name: output.curve("loss") for name, output in outputs.items()}
    shown = {name: points for name, points in explained.items() if len(points) > 1}
    maps = {name: album.add_all(run.evaluation.pictures(f"pca/{name}_*.png")[:MAPS], f"Features, {name}, picture")
            for name in outputs} if run.evaluation else {}  # fmt: skip
    return {
        "table": Table(
            ["recipe", "method", "teacher", "backbone", "steps", "explained variance", "within pictures", "embedding spread"],
            [_recipe(name, output, run) for name, output in outputs.items()],
            frozenset({4, 5, 6, 7}),
        ),
        "collapsed": [name for name, output in outputs.items() if output.metrics.get("embedding_spread", 1) < COLLAPSED],
        "untaught": [name for name, output in outputs.items() if output.metrics.get(VARIANCE, 1) <= 0],
        "explained": curves(shown, "step", "explained variance") if shown else None,
        "losses": curves({name: points for name, points in losses.items() if len(points) > 1}, "step", "loss of pretraining")
        if any(len(points) > 1 for points in losses.values()) else None,
        "parts": _parts(outputs),
        "maps": {name: pictures for name, pictures in maps.items() if pictures},
    }  # fmt: skip


def _recipe(name: str, output: Output, run: Run) -> list[str]:
    settings, metrics = output.params, output.metrics
    inputs = [key for key in output.record["inputs"] if key == "teacher" or key.startswith("teachers/")]
    teacher = ", ".join(key.partition("/")[2] for key in inputs if "/" in key) or run.teacher_of.get(name, "") if inputs else "none"
    return [
        name,
        settings["distill"].get("method", "features"),
        teacher,
        settings["student"]["backbone"],
        str(settings["distill"]["steps"]),
        *(f"{100 * metrics[share]:.1f} %" if share in metrics else "" for share in (VARIANCE, WITHIN)),
        f"{metrics['embedding_spread']:.2f}" if "embedding_spread" in metrics else "",
    ]


def _parts(outputs: dict[str, Output]) -> Table | None:
    """Explained variance by tap, or by teacher of a team; a row per recipe."""
    parts = {name: {match[2]: value for key, value in output.metrics.items() if (match := PART.fullmatch(key))}
             for name, output in outputs.items()}  # fmt: skip
    columns = list(dict.fromkeys(part for of_recipe in parts.values() for part in of_recipe))
    columns.sort(key=lambda part: (len(part), part))  # stride 8 before stride 16
    if not columns:
        return None
    rows = [[name, *(f"{100 * of[part]:.1f} %" if part in of else "" for part in columns)] for name, of in parts.items() if of]
    head = ["recipe", *(part.replace("stride", "stride ") for part in columns)]
    return Table(head, rows, frozenset(range(1, len(head))))


def label_recipes(run: Run) -> Table | None:
    """Recipes with labels, a row per seed: final losses of interpreter and distillation, and the interpreter's metric."""
    rows = []
    for place, output in run.below("backbones").items():
        if output.record["stage"] == "distill-labels":
            interpreter = run.found.get(f"interpreters/{place}")
            name, _, seed = place.rpartition("/")
            losses = [each.metrics.get("loss") if each else None for each in (interpreter, output)]
            mode = output.params["labels"].get("mode", "")
            read = interpreter.metrics.get(f"val_{run.metric}") if interpreter else None
            shown = [f"{loss:.3g}" if loss is not None else "" for loss in losses]
            rows.append([name, seed, mode, *shown, f"{100 * read:.1f}" if read is not None else ""])
    head = ["recipe", "seed", "mode", "interpreter's loss", "distillation's loss", f"interpreter's {run.title}, %"]
    return Table(head, rows, frozenset({1, 3, 4, 5})) if rows else None


def fine_tuning(run: Run, album: Album) -> dict[str, Any]:
    """Loss curves of fine-tuning, averaged over seeds, and pictures with truth and predictions."""
    if not run.evaluation:
        return {}
    named = {init: run.evaluation.curve(init, "finetune_loss.csv") for init in run.results}
    shown = {init: points for init, points in named.items() if len(points) > 1}
    return {
        "curve": curves(shown, "step", "loss of fine-tuning") if shown else None,
        "legend": _legend(run.description),
        "overlays": album.add_all(run.evaluation.pictures("overlays/*.png")[:OVERLAYS], "Validation picture"),
    }


def _legend(description: dict[str, Any]) -> list[tuple[str, str]]:
    """[(class, colour)] of the pictures; empty for tasks whose colours do not encode classes."""
    named = description.get("classes", [])[:CLASSES]
    match description.get("task"):
        case "segmentation":
            colours = class_colours(named)
        case "detection":
            colours = cycled_colours(len(named))
        case _:
            return []
    return [(name, f"#{colour.tobytes().hex()}") for name, colour in zip(named, colours, strict=False) if colour.any()]
