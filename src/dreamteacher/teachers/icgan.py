"""Imported IC-GAN (Casanova et al. 2021), a BigGAN conditioned on features of stored pictures: kind `icgan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamteacher.errors import UserError
from dreamteacher.teachers import biggan
from dreamteacher.teachers.gan_import import read_truncation
from dreamteacher.teachers.importing import check_options, read_checkpoint, read_state_dict
from dreamteacher.teachers.unpickling import in_one_line, read_array

open_folder = biggan.open_folder


def import_weights(source: str, out: Path, options: dict[str, str]) -> None:
    """Write the teacher's folder `out`; see `importing.import_teacher`.

    `source` is G_ema_*.pth, or the folder of it, as unpacked from the published archive; of several, the one with the lowest FID is used.

    Options: `instances`, the .npy of stored instance features (and their classes), required; `truncation` and `eps` as of kind biggan.

    Raises:
        UserError: a file cannot be read without executing its code, or is of another architecture.
    """
    check_options(options, ["instances", "truncation", "eps"])
    if "instances" not in options:
        raise UserError("an IC-GAN is conditioned on stored features: give them by --option instances=FILE.npy")
    path = find_weights(Path(source))
    shape = {"truncation": read_truncation(options), "eps": biggan.read_eps(options)}
    stored = read_instances(Path(options["instances"]))
    with in_one_line(path):
        network = biggan.read_wide(path, read_state_dict(path), shape, stored)
    biggan.save_teacher(network, out, "icgan")


def find_weights(source: Path) -> Path:
    """The EMA generator with the lowest FID in a folder; `source` itself if it is a file.

    Raises:
        UserError: `source` is an archive, holds no generator, or several of unknown FID.
    """
    if not source.is_dir():
        if source.suffix in (".gz", ".tar", ".tgz"):
            raise UserError(f"{source} is an archive; unpack it, and name the folder")
        return source
    found = sorted(source.glob("G_ema*.pth"))
    if not found:
        raise UserError(f"{source} holds no G_ema*.pth, the averaged generator")
    if len(found) == 1:
        return found[0]
    try:
        return min(found, key=_fid)
    except (UserError, KeyError, TypeError, ValueError) as error:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{source} holds several generators ({names}), of which it does not say which is the best; name one") from error


def _fid(weights: Path) -> float:
    content: Any = read_checkpoint(weights.with_name(weights.name.replace("G_ema", "state_dict")))
    return float(content["best_FID"])


def read_instances(path: Path) -> tuple[Tensor, Tensor]:
    """Stored features, float32 `(n, d)`, and their classes, int64 `(n,)`, 0 where the file has none.

    Raises:
        UserError: the file is missing or holds no features, or its labels are of another number.
    """
    if not path.is_file():
        raise UserError(f"--option instances={path} is no file")
    content = read_array(path)
    features = content.get("instance_features") if isinstance(content, dict) else content
    if not isinstance(features, np.ndarray) or features.ndim != 2 or not len(features) or features.dtype.kind != "f":
        raise UserError(f"{path} holds no features: a dict with instance_features, or an array, of (pictures, length)")
    labels = content.get("labels") if isinstance(content, dict) else None
    labels = np.zeros(len(features)) if labels is None else np.asarray(labels)
    if labels.shape != (len(features),):
        raise UserError(f"{path} has {len(features)} features and labels of shape {labels.shape}")
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
