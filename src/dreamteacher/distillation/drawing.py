"""Pictures of a generator's features next to a student's regression of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.transforms import full_image
from dreamteacher.distillation.whitening import load_whitening
from dreamteacher.report.figures import Panel, pca_colours
from dreamteacher.stage import read_stage
from dreamteacher.students.regressor import load_regressor
from dreamteacher.tasks.model import normalize
from dreamteacher.teachers.base import dreams
from dreamteacher.teachers.encodings import encoding_of_pictures
from dreamteacher.teachers.folder import open_teacher
from dreamteacher.training.randomness import StepRandom


@torch.inference_mode()
def draw_features(images: ImageSet, shown: list[int], teacher: Path, backbone: Path, device: torch.device) -> list[list[list[Panel]]]:
    """For each picture in `shown` two rows of panels: the generator's features and, below, the student's regression, in the same colours.

    Uses the settings of distillation. Pictures are padded by reflection by distill.margin, so that everything shown is as far from a border
    as the distilled cells. A generator that cannot encode pictures is shown on its own samples.

    Args:
        images: the split of the pictures.
        shown: indices of the pictures.
        teacher: folder of the generator.
        backbone: output of distill-features.
        device: where both compute.
    """
    distill = read_stage(backbone)["params"]["distill"]
    student = load_regressor(backbone)
    generator = open_teacher(teacher, student.heads.strides, encoding_of_pictures(distill), device)
    student.eval().to(device)
    whiten = load_whitening(distill["whitening"], backbone, generator.taps)
    extension = 0 if dreams(generator) else -(-distill.get("margin", 0) // generator.multiple) * generator.multiple
    pictures, targets, regressed = [], [], []
    for index in shown:
        sample = images.read(index)
        extended = np.pad(sample.image, [(extension, extension), (extension, extension), (0, 0)], mode="reflect")
        padded = full_image(math.lcm(32, generator.multiple))(replace(sample, image=extended, label=None))["image"][None].to(device)
        lesson = generator.teach(padded, StepRandom(0, index, 0, 1, device))
        image: np.ndarray = sample.image if not dreams(generator) else lesson.images[0].movedim(0, 2).mul(255).byte().cpu().numpy()
        pictures.append(image)
        # The cells of the picture itself, by stride.
        cells = {s: [slice(extension // s, extension // s + -(-side // s)) for side in image.shape[:2]] for s in student.heads.strides}
        maps = whiten([m[:, :, *cells[tap.stride]] for m, tap in zip(lesson.features, generator.taps, strict=True)])
        targets.append([m[0].cpu().numpy() for m in maps])
        pyramid = student.backbone(normalize(lesson.images, student.backbone.mean, student.backbone.std))
        maps = student.regress(pyramid, lesson.images.shape[2:], lesson.step)
        regressed.append([m[0][:, *cells[tap.stride]].cpu().numpy() for m, tap in zip(maps, generator.taps, strict=True)])
    coloured = [pca_colours([t[tap] for t in targets], [r[tap] for r in regressed]) for tap in range(len(generator.taps))]
    names = [f"stride {tap.stride}" for tap in generator.taps]
    drawn: list[list[list[Panel]]] = []
    for number, picture in enumerate(pictures):
        above: list[Panel] = [
            ("picture", picture),
            *((f"generator, {n}", c[0][number]) for n, c in zip(names, coloured, strict=True)),
        ]
        below: list[Panel] = [("", None), *((f"student, {n}", c[1][number]) for n, c in zip(names, coloured, strict=True))]
        drawn.append([above, below])
    return drawn
