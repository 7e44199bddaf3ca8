"""New pictures of a data set compared with the previous one, and their drift."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from dreamteacher.data.dataset import ImageSet, Samples
from dreamteacher.data.drift import brightness_and_size, contents, draw, mean_shift
from dreamteacher.data.transforms import pretrain_crop
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage
from dreamteacher.students.backbone import BACKBONE_FOLDER, load_backbone
from dreamteacher.tasks.model import normalize
from dreamteacher.training.processes import this_process

DRIFT_FILE = "drift.json"


def run(
    params: Params, *, data: Path, out: Path, before: Path | None = None, features: Path | None = None, overwrite: bool = False
) -> dict[str, float]:
    """Compare the train split of `data` with that of `before`, a data set or a folder with its manifest.csv; None: all is new.

    A picture is new if `before` has no file with the same content. `out` gets new.txt (their names) and drift.json: for brightness,
    size and, with `features` (output of distill-features), the backbone's embedding, a `data.drift.Shift` of the new pictures
    against the old ones still in the data, over up to retrain.drift_images of each.

    Returns:
        n_new, n_known, n_gone (in `before` only), and if there are new and known ones NAME_shift and NAME_shift_by_chance.
    """
    recorded = {"drift_images": params.retrain.drift_images, "resolution": params.distill.resolution}
    inputs = {"data": data} | ({"before": before / "manifest.csv"} if before else {}) | ({"features": features} if features else {})
    with open_stage("compare-data", params=recorded, inputs=inputs, out=out, overwrite=overwrite) as stage:
        if stage.done:
            return stage.metrics
        images = ImageSet(data, "train")
        digests = [images.sha256(i) for i in range(len(images))]
        there, known = set(digests), contents(before)["train"] if before else set()
        new = there - known
        names = [name for name, digest in zip(images.names, digests, strict=True) if digest in new]
        (stage.tmp / "new.txt").write_text("".join(f"{name}\n" for name in names))
        stage.metrics = {"n_new": float(len(new)), "n_known": float(len(there & known)), "n_gone": float(len(known - there))}
        shifts = {}
        if new and there & known:
            drawn = [draw(images, part, params.retrain.drift_images) for part in (there & known, new)]
            columns = [brightness_and_size(images, indices) for indices in drawn]
            measured = {name: [values[:, [i]] for values in columns] for i, name in enumerate(("brightness", "size"))}
            if features:
                measured["embedding"] = [_embed(images, indices, features, params) for indices in drawn]
            shifts = {name: mean_shift(*pair) for name, pair in measured.items()}
        for name, shift in shifts.items():
            stage.metrics |= {f"{name}_shift": shift.shift, f"{name}_shift_by_chance": shift.by_chance}
        record = {"counts": stage.metrics, "shifts": {name: asdict(shift) for name, shift in shifts.items()}}
        (stage.tmp / DRIFT_FILE).write_text(json.dumps(record, indent=1) + "\n")
        stage.tracker.artifact(stage.tmp / DRIFT_FILE)
        return stage.metrics


@torch.inference_mode()
def _embed(images: ImageSet, indices: list[int], features: Path, params: Params) -> np.ndarray:
    """`(N, C)`: the backbone's pooled embedding of a crop of each picture, of its training resolution."""
    device = this_process().device
    backbone = load_backbone(features / BACKBONE_FOLDER).to(device)
    crops = Samples(images, pretrain_crop(params.distill.resolution), indices)
    parts = []
    for start in range(0, len(crops), 32):
        batch = torch.stack([crops[(i, i)]["image"] for i in range(start, min(start + 32, len(crops)))]).to(device)
        parts.append(backbone.embed(backbone(normalize(batch, backbone.mean, backbone.std))).float().cpu())
    return torch.cat(parts).numpy()
