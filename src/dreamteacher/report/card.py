"""The model card of a published model: task, metrics compared with training from scratch, data, serving."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dreamteacher.report.summary import main_metric, markdown, spread, table

LENGTH = 5000  # maximum characters of a description in MLflow's databases
CLASSES = 20  # at most named in the first line
OF_CLASSES = {
    "miou": ("iou", "IoU"),
    "top1": ("accuracy", "Accuracy"),
    "ap": ("ap", "AP"),
    "map": ("ap", "AP"),
}  # metric -> (key, name) of its per-class metric
ABOUT = (
    "`dreamteacher publish` creates the versions of this model; each has a model card. Alias `champion`: the version to serve; "
    "`challenger`: the version published last; `previous`: the former champion. `dreamteacher promote` and `rollback` move the aliases."
)


def model_card(name: str, contract: Mapping[str, str], metrics: dict[str, dict[str, Any]], parity: float) -> str:
    """Markdown of at most LENGTH characters, for a registered version of `name`.

    Args:
        name: of the model in Triton and MLflow.
        contract: metadata of its ONNX file.
        metrics: `metrics.json` of evaluate, {initialisation: {METRIC_mean, METRIC_std, n_seeds}}.
        parity: largest |onnxruntime - torch|.
    """
    by_class = _by_class(contract, metrics)
    text = _render(name, contract, metrics, parity, by_class)
    if len(text) > LENGTH:
        text = _render(name, contract, metrics, parity, "Per-class metrics are in the evaluation's `metrics.json`.")
    return text if len(text) <= LENGTH else text[: LENGTH - 4].rpartition("\n")[0] + "\n..."


def _render(name: str, contract: Mapping[str, str], metrics: dict[str, dict[str, Any]], parity: float, by_class: str) -> str:
    init, seed, size = contract["init"], contract["seed"], contract["size"]
    counts, trained = json.loads(contract["counts"]), json.loads(contract["trained"])
    labelled = f"{counts['labelled_train']} of them labelled" + (
        "" if trained["few_labels"] is None else f", of which fine-tuning saw {trained['few_labels']} (`few_labels`)"
    )
    facts = {
        "data": f"`{contract['data_hash']}`",
        "train": f"{counts['train']} pictures, {labelled}",
        "validation": f"{counts['val']} pictures, {counts['labelled_val']} of them labelled",
        "pictures": _pictures(contract),
        "backbone": f"`{contract['architecture']}`, strides {', '.join(map(str, json.loads(contract['strides'])))}",
        "fine-tuning": ", ".join(f"`{key}` {value}" for key, value in trained["finetune"].items()),
        "ONNX": f"checked at {size} x {size}, |onnxruntime - torch| at most {parity:.2g}",
        "made by": f"dreamteacher {contract['dreamteacher_version']}, commit `{contract['git_revision'] or 'unknown'}`",
    }
    rows = [["", ""], *([key, _cell(value)] for key, value in facts.items())]
    weights = " They were initialised from timm's ImageNet weights, which have their own licence." if init == "imagenet" else ""
    return "\n".join(
        [
            f"# {name}",
            "",
            f"{contract['task'].capitalize()} of {_classes(json.loads(contract['classes']))}. Initialisation `{init}`, seed {seed}.",
            "",
            "## Metrics on the validation split, in per cent",
            "",
            table(metrics),
            "",
            by_class,
            "",
            "## Data and settings",
            "",
            markdown(rows),
            "",
            "## Serve and predict",
            "",
            "    dreamteacher serve                                      # artifacts/triton/local, on this machine",
            "    tritonserver --model-repository artifacts/triton/production",
            f"    dreamteacher predict IMAGE --url HOST:PORT --model {name} --out predictions",
            "",
            "The ONNX file's metadata and Triton's model configuration describe the preprocessing of pictures.",
            "",
            "## Licence",
            "",
            f"The software is Apache-2.0. For the weights, the terms of the training pictures apply; state them here.{weights}",
        ]
    )


def _by_class(contract: Mapping[str, str], metrics: dict[str, dict[str, Any]]) -> str:
    init, (kind, name) = contract["init"], OF_CLASSES.get(main_metric(metrics), ("", ""))
    inits = [each for each in dict.fromkeys(["scratch", init]) if each in metrics]
    classes = [each for each in json.loads(contract["classes"]) if any(f"{kind}_{each}_mean" in metrics[of] for of in inits)]
    rows = [["class", *inits], *([_cell(each), *(spread(metrics[of], f"{kind}_{each}") for of in inits)] for each in classes)]
    return f"{name} of each class:\n\n{markdown(rows)}" if classes and inits else ""


def _classes(classes: list[str]) -> str:
    named = ", ".join(classes[:CLASSES])
    return f"{named} and {len(classes) - CLASSES} more classes" if len(classes) > CLASSES else named


def _pictures(contract: Mapping[str, str]) -> str:
    short, scale = json.loads(contract["short_side"]), json.loads(contract["scale_to"])
    reduced = f"reduced to a short side of {short} px (`ingest.short_side`)" if short else "in their own size"
    return reduced + (f", then scaled to {scale} px" if scale else "")


def _cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return text.replace("|", "\\|")
