"""Train the generator on the unlabelled pictures, and save it with its taps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import ImageSet, Samples
from dreamteacher.data.transforms import Transform, pretrain_crop, with_class
from dreamteacher.errors import UserError
from dreamteacher.report.tables import write_table
from dreamteacher.settings.pretraining import Teacher
from dreamteacher.settings.schema import Params
from dreamteacher.stage import Stage, digest_of, open_stage
from dreamteacher.teachers.base import Generator
from dreamteacher.teachers.folder import find_pretrained, get_kind, read_facts
from dreamteacher.teachers.importing import copy_teacher
from dreamteacher.training.loop import train
from dreamteacher.training.order import draw_batches
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom
from dreamteacher.training.run import Trained

log = logging.getLogger(__name__)

LOSS_PICTURES = 256  # pictures for measuring the loss of a pretrained teacher


def run(
    params: Params, *, data: Path, out: Path, name: str = "own", start: Path | None = None, overwrite: bool = False
) -> dict[str, float]:
    """Train on the train split of `data`; `out` gets the generator with `teacher.json`, `samples.png`, `curves.csv`.

    `name` is the teacher's name in the settings. `start` is an earlier teacher of the same kind and size, from whose weights training
    continues. With teacher.pretrained that teacher is used unchanged; only its samples and its loss on `data` are computed. An imported
    teacher is copied, since its folder, not the settings, defines the network.

    Returns:
        `loss` of the kind, over the last log records or, for a pretrained teacher, over drawn pictures; 0 for a control or an imported
            teacher, which are not trained here.

    Raises:
        UserError: teacher.pretrained is missing, damaged, of another kind, or does not match teacher.digest; or the kind cannot be trained
            here, or cannot be class-conditional, or there are no classes.
    """
    settings = params.teacher
    start = find_pretrained(settings.pretrained) if settings.pretrained else start
    recorded = {**params.section("seed", "teacher"), "name": name}
    inputs = {"data": data} | ({"start": start} if start else {})
    with open_stage("train-teacher", params=recorded, inputs=inputs, out=out, overwrite=overwrite) as stage:
        if stage.done:
            return stage.metrics
        kind, facts = get_kind(settings.kind), _facts_of(start, settings)
        if settings.pretrained and start and "source" in facts:  # imported
            if this_process().is_main_process:
                copy_teacher(start, stage.tmp)
                write_table([{"step": 0, "loss": 0.0}], stage.tmp / "curves.csv")
            stage.metrics["loss"] = 0.0
            return stage.metrics
        if not hasattr(kind, "Generator"):
            raise UserError(
                f"a teacher of kind {settings.kind!r} is not trained here; make its folder by `dreamteacher import-teacher {settings.kind} "
                "SOURCE --out FOLDER`, and set teacher.pretrained to it"
            )
        generator = kind.Generator(settings)
        images = ImageSet(data, "train")
        samples = Samples(images, _crop(generator, images, params))
        network = _build(generator, params.seed, start)
        if settings.pretrained or not generator.trains:
            network = network.to(this_process().device).eval()
            loss = _mean_loss(generator, network, samples, params.seed) if generator.trains else 0.0
            history = [{"step": 0, "loss": loss}]
        else:
            trained = _train(generator, network, samples, params, stage)
            network, loss, history = trained.ema or trained.model, trained.last_loss(), trained.history
        if this_process().is_main_process:
            write_table(history, stage.tmp / "curves.csv")
            if settings.samples and generator.trains:
                pictures = generator.sample(network.to(this_process().device), settings.samples, params.seed)
                _save_grid(pictures, stage.tmp / "samples.png")
                stage.tracker.artifact(stage.tmp / "samples.png")
            trained_on = {"pictures": len(images), "digest": images.digest()} if generator.trains else None
            if settings.pretrained:
                trained_on = facts.get("trained_on")
            class_names = {"classes": images.classes} if settings.conditional else {}
            generator.save(network.cpu(), stage.tmp, {"resolution": settings.resolution, "trained_on": trained_on, **class_names})
        stage.metrics["loss"] = loss
    return stage.metrics


def _facts_of(start: Path | None, settings: Teacher) -> dict[str, Any]:
    """`teacher.json` of the teacher to start from; {} without one.

    Raises:
        UserError: it does not match teacher.digest, or is of another kind.
    """
    if start is None:
        return {}
    if settings.digest and (found := digest_of(start)) != settings.digest:
        raise UserError(f"{start} is not the teacher that teacher.digest names; if it is meant, set teacher.digest: {found}")
    facts = read_facts(start)
    if facts["kind"] != settings.kind:
        raise UserError(f"{start} is a teacher of kind {facts['kind']!r}; set teacher.kind alike, or take no pretrained one")
    return facts


def _train(generator: Generator, network: nn.Module, samples: Samples, params: Params, stage: Stage) -> Trained:
    """Train `network`; a grid of its samples is logged every teacher.sample_every steps."""
    settings = params.teacher

    def step(model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        loss: Any = generator.loss  # class-conditional for some kinds
        return loss(model, batch["image"], random, **({"classes": batch["class"]} if settings.conditional else {}))

    def draw(model: nn.Module, step: int) -> dict[str, float]:
        if settings.samples and step < settings.steps:
            path = stage.checkpoints / f"samples_{step:06}.png"
            _save_grid(generator.sample(model, settings.samples, params.seed), path)
            stage.tracker.artifact(path, "samples")
        return {}

    return train(network, step, samples, settings, stage, seed=params.seed, on_eval=draw, eval_every=settings.sample_every)


def _build(generator: Generator, seed: int, start: Path | None) -> nn.Module:
    """The network with the weights of `start`, or random ones."""
    torch.manual_seed(seed)
    network = generator.build()
    if start:
        generator.load_weights(network, start)
    return network


def _crop(generator: Any, images: ImageSet, params: Params) -> Transform:
    """The train crops, with teacher.conditional also their classes; sets the generator's number of classes.

    Raises:
        UserError: the kind cannot be class-conditional, or the labels are not classes of pictures.
    """
    crop = pretrain_crop(params.teacher.resolution)
    if not params.teacher.conditional:
        return crop
    if not hasattr(generator, "classes"):
        raise UserError(f"a teacher of kind {params.teacher.kind!r} cannot be told of classes; set teacher.conditional = false")
    labelled = len(images.labelled())
    if images.form != "class" or not labelled:
        found = f"labels of {images.task}" if images.task else "no labels"
        raise UserError(
            f"teacher.conditional needs pictures with a class each (class folders or labels.csv), and the data set has {found}; set it to "
            "false"
        )
    if params.few_labels is not None and labelled > params.few_labels:
        log.warning("the teacher is told the classes of %d pictures, more than few_labels = %d: what it teaches is compared with what has "
                    "seen fewer labels", labelled, params.few_labels)  # fmt: skip
    generator.classes = len(images.classes)
    return with_class(crop, generator.classes)


@torch.no_grad()
def _mean_loss(generator: Generator, network: nn.Module, samples: Samples, seed: int) -> float:
    device = this_process().device
    batches = draw_batches(samples, LOSS_PICTURES, seed, device)
    losses = [generator.loss(network, images, StepRandom(seed, i, 0, 1, device))["loss"] for i, images in enumerate(batches)]
    return float(torch.stack(losses).mean())


def _save_grid(pictures: Tensor, path: Path) -> None:
    from torchvision.utils import make_grid, save_image

    save_image(make_grid(pictures, nrow=8), path)
