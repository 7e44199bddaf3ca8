"""Settings of pretraining: the teacher, the student, and what is distilled.

Equation, section and table numbers are those of the DreamTeacher paper (arXiv 2307.07487).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dreamteacher.settings.presets import by_teacher_size
from dreamteacher.settings.section import BATCH, PARTS, WARMUP, Augment, Count, Fraction, Name, Positive, Section, Training, require_known

OBJECTIVES = ("mse", "at", "cosine", "smooth_l1", "relational", "global")
OBJECTIVES_GROUP = "dreamteacher.objectives"  # of entry points, by which packages add terms


class Teacher(Training):
    """The generator, trained on the unlabelled pictures."""

    kind: str = Field(
        "ddpm",
        description="ddpm: as in the paper; edm: Karras et al. 2022, conditioned on its augmentation; other kinds, trained or "
        "imported: docs/teachers.md",
    )
    size: Literal["tiny", "mini", "small", "adm-256"] = Field(
        "tiny",
        description="widths and depth of the U-Net: the demo's, two larger ones, or the paper's (Tab 16); the settings that depend on "
        "it say so",
    )
    pretrained: str | None = Field(
        None,
        description="a trained teacher to use instead of training one: bccd, nuclei or nuclei-256 (part of the package), the folder of a "
        "teacher of the same size, or any folder made by `dreamteacher import-teacher`; null: train",
    )
    digest: str | None = Field(
        None,
        description="sha256 of the folder in teacher.pretrained, as printed by `dreamteacher import-teacher`; a folder with another "
        "digest is refused. DVC and KFP need it to notice a changed folder at the same path; null: not checked",
    )
    prediction: Literal["epsilon", "v_prediction"] = Field(
        "v_prediction",
        description="prediction target of a ddpm's U-Net: the noise, or v (Salimans & Ho 2022), which gives good samples after fewer "
        f"steps ({by_teacher_size('teacher', 'prediction')})",
    )
    self_conditioning: bool = Field(
        False,
        description="the U-Net of a ddpm or edm also gets its own estimate of the picture (Chen et al. 2022): in half of the training "
        "steps, and from a first forward pass when features are taken; training takes a third longer, taking features "
        "about twice as long",
    )
    conditional: bool = Field(
        False,
        description="condition a ddpm or edm on the class of each train picture that has one (class folders, labels.csv), dropped one "
        "time in ten; features are taken without a class. It uses all labels, not only few_labels of them",
    )
    resolution: Positive = Field(64, description=f"side of the random training crops, pixels ({by_teacher_size('teacher', 'resolution')})")
    T_train: Positive = Field(1000, description="diffusion steps of the linear schedule, betas 1e-4 to 2e-2 (Tab 16)")
    samples: Count = Field(16, description="pictures in a sample grid; 0: no grid")
    sample_every: Positive = Field(
        500,
        description=f"steps between sample grids; all are logged, the last is saved ({by_teacher_size('teacher', 'sample_every')})",
    )
    sample_steps: Positive = Field(50, description="DDIM steps for a sample grid")
    r1_gamma: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="weight of the R1 penalty, stylegan2 only (the paper's BDD100K: 10); null: 0.0002 x pixels of a picture / batch_size",
    )
    ada_target: Fraction | None = Field(
        0.6,
        description="target of StyleGAN2-ADA's adaptive augmentation: mean sign of the discriminator's output on real pictures, "
        "stylegan2 only; null: no augmentation, for 100,000 pictures and more",
    )
    steps: Positive = Field(4500, description=f"optimiser steps ({by_teacher_size('teacher', 'steps')})")
    batch_size: Positive = Field(32, description=f"{BATCH} ({by_teacher_size('teacher', 'batch_size')})")
    accumulate: Positive = Field(1, description=f"{PARTS} ({by_teacher_size('teacher', 'accumulate')})")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description=f"peak learning rate ({by_teacher_size('teacher', 'lr')})")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="none in Tab 16")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="betas of AdamW")
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        0.999,
        description="decay of the exponential moving average of the weights; the averaged weights are the teacher "
        f"({by_teacher_size('teacher', 'ema')})",
    )


class Student(Section):
    """The backbone to be pretrained and its neck."""

    backbone: str = Field(
        "resnet18", description="any timm model that supports features_only; plain transformers get a simple feature pyramid"
    )
    finest_stride: Literal[2, 4] = Field(
        4, description="stride of the pyramid's finest level: 4 as in the paper (256 px); 2 for objects of few pixels; see also taps"
    )
    width: Positive = Field(256, description="channels of the feature regressor (App D.1: 256), which is also the segmentation neck")
    neck: Literal["fpn-ppm", "fpn", "fpn-attention", "pafpn"] = Field(
        "fpn-ppm",
        description="fusion of the backbone's levels for the heads of taps and tasks (Tab 8): FPN with pyramid pooling, FPN, FPN with "
        "self-attention on the coarsest level, or FPN with a second, bottom-up path",
    )


class EncodingSettings(Section):
    """How pictures enter a diffusion model."""

    encoding: Literal["stochastic", "ddim", "stratified", "dream"] = Field(
        "stochastic",
        description="stochastic: new noise each time, to step T (best of Tab 10); ddim: deterministic inversion to T; stratified: a "
        "step per picture, drawn from the strata in turn, on which the student's heads are conditioned; dream: pictures "
        "sampled from the teacher",
    )
    T: Count = Field(50, description="noise step of the encoding")
    strata: Annotated[list[Count], Field(min_length=2)] = Field(
        [10, 110, 210, 310],
        description="boundaries of the ranges of noise steps from which the encoding stratified draws; the last is exclusive",
    )
    passes: Positive = Field(
        10, description="forward passes of the generator for the encodings ddim (picture to T) and dream (noise to picture)"
    )

    @field_validator("strata")
    @classmethod
    def _in_order(cls, edges: list[int]) -> list[int]:
        if edges != sorted(set(edges)):
            raise ValueError("boundaries must increase")
        return edges


class Distill(Training, EncodingSettings):
    """Pretraining without labels: feature distillation (Sec 3.1, Eq 1-3), or a method to compare it with."""

    method: str = Field(
        "features",
        description="features: distil the teacher's features, as in the paper; team: features of several teachers; simclr, moco, "
        "byol, swav, densecl: compare two views; mae, simmim, spark, denoising: reconstruct masked or noisy pictures; other "
        "packages may add methods. encoding, T, strata, passes, whitening, stats_images, objectives and margin only apply "
        "to features and team",
    )
    steps: Positive = Field(150, description=f"optimiser steps ({by_teacher_size('distill', 'steps')})")
    batch_size: Positive = Field(32, description=f"{BATCH} ({by_teacher_size('distill', 'batch_size')})")
    accumulate: Positive = Field(1, description=f"{PARTS} ({by_teacher_size('distill', 'accumulate')})")
    warmup_steps: Count = Field(20, description=f"{WARMUP} ({by_teacher_size('distill', 'warmup_steps')})")
    lr: Annotated[float, Field(gt=0)] = Field(2e-3, description=f"peak learning rate ({by_teacher_size('distill', 'lr')})")
    T: Count = Field(50, description="noise step of the encoding (Tab 17: 50, ImageNet 150; best of Tab 11: 250)")
    resolution: Positive = Field(64, description=f"side of the random crops, pixels ({by_teacher_size('distill', 'resolution')})")
    whitening: Literal["layernorm", "standardize", "phi-s"] = Field(
        "layernorm",
        description="W of Eq 1; layernorm: LayerNorm over channels and positions; standardize: mean and std per channel; phi-s: a "
        "rotation after which all channels have the same variance, and one scale (arXiv 2410.01680); the last two are "
        "measured on stats_images",
    )
    stats_images: Positive = Field(
        256, description="train pictures, drawn by seed, on which the feature statistics for whitening are measured"
    )
    objectives: Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(min_length=1)] = Field(
        {"mse": 1.0, "at": 10.0},
        description="weights of the loss terms; 0: only logged. mse: Eq 1; at: Eq 2, whose weight is lambda_AT of Eq 3; cosine and "
        "smooth_l1: AM-RADIO (0.9 and 0.1); relational: cosine similarities between the positions of a picture; global: "
        "predict the average of the coarsest tap from the embedding; other packages may add terms",
    )
    margin: Count = Field(
        0,
        description="border of the crops excluded from loss and explained variance, pixels, rounded up to whole cells of each tap: "
        "there the generator's features depend on the border more than on the picture",
    )
    team: Annotated[list[Name], Field(min_length=2)] | None = Field(
        None, description="names of the teachers for the method team; null: all teachers"
    )
    drop: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="probability that the method team leaves a teacher out of a step; the teacher with the largest loss is never left out",
    )
    augment: Augment = Field(
        "natural",
        description="augmentation of the two views of simclr, moco, byol, swav and densecl: as finetune.augment, with stronger colour "
        "changes and blur",
    )
    temperature: Annotated[float, Field(gt=0)] | None = Field(
        None, description="temperature of the similarities in simclr, moco, swav and densecl; null: as published, 0.1 (simclr, swav) or 0.2"
    )
    projector: Positive | None = Field(
        None,
        description="hidden channels of the projector of two-view methods; null: as many as the backbone's embedding has, twice as "
        "many for byol (for ResNet-50 the published 2048 and 4096)",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="decay of the momentum encoder of moco and densecl, reached gradually in short runs; for byol its initial value, "
        "which rises to 1 at the last step; null: as published, 0.999, and 0.996 for byol",
    )
    queue: Count | None = Field(
        None,
        description="queue of embeddings of earlier batches: negatives for moco and densecl, additional samples to assign for swav; "
        "null: as published, 65,536 (moco, densecl) or 3,840 (swav), but at most the number of train pictures; 0 is "
        "allowed for swav only",
    )
    prototypes: Positive | None = Field(
        None,
        description="number of prototypes of swav; null: a tenth of the number of train pictures, at most the published 3,000, at least 2",
    )
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="masked share of a picture in mae, simmim and spark; null: as published, 0.75 (mae) or 0.6"
    )
    monitor_every: Positive = Field(
        50,
        description="steps between measurements of explained variance on held-out unlabelled pictures "
        f"({by_teacher_size('distill', 'monitor_every')})",
    )
    monitor_images: Positive = Field(
        64, description="train pictures held out for that measurement: features are not distilled on them, their labels are not read"
    )

    @field_validator("objectives")
    @classmethod
    def _known_and_in_order(cls, weights: dict[str, float]) -> dict[str, float]:
        """In one order, in which the terms are added and logged."""
        unknown = sorted(set(weights) - set(OBJECTIVES))
        for name in unknown:
            require_known(name, OBJECTIVES, OBJECTIVES_GROUP, "term")
        if not any(weights.values()):
            raise ValueError("at least one term needs a weight above 0")
        return {name: weights[name] for name in [*(n for n in OBJECTIVES if n in weights), *unknown]}


class Interpreter(Training, EncodingSettings):
    """The feature interpreter on the frozen generator (Sec 3.2, Eq 4, App D.2)."""

    encoding: Literal["stochastic", "ddim", "stratified"] = Field(
        "stochastic", description="as distill.encoding, without dream, whose pictures have no labels"
    )
    width: Positive = Field(256, description="channels of its fuse layers (App D.2: 256)")
    T: Count = Field(50, description="noise step of the encoding (App G.2: 50)")
    resolution: Positive = Field(64, description=f"side of the random crops, pixels ({by_teacher_size('interpreter', 'resolution')})")
    mirror: bool = Field(
        True,
        description="flip crops horizontally at random; set to false if finetune.augment is no-flip or none, as flips would change "
        "the labels",
    )
    dice_weight: Annotated[float, Field(ge=0)] = Field(3.0, description="lambda_d of Eq 4; segmentation only")
    dropout: Fraction = Field(0.1, description="dropout before the logits (App D.2)")
    lr: Annotated[float, Field(gt=0)] = Field(4e-3, description="peak learning rate (App G.2)")


class Labels(Training):
    """Label distillation alone (Eq 5) or mixed with feature distillation (Eq 6)."""

    mode: Literal["mix", "labels"] = Field("mix", description="mix: together with feature distillation (Eq 6); labels: alone (Eq 5)")
    start: Literal["features", "fresh"] = Field(
        "features", description="initialise from the feature-distilled backbone and neck, or with random weights"
    )
    tau: Annotated[float, Field(gt=0)] = Field(4.0, description="temperature of both distributions (Eq 5)")
    label_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="lambda_ld of Eq 6")
    dreams: Fraction = Field(
        0.0,
        description="share of the steps on pictures sampled from the teacher, a diffusion model, with the interpreter's labels for "
        "them, as in DatasetGAN; the other steps use train pictures",
    )
    passes: Positive = Field(20, description="approximate number of forward passes of the generator per picture of labels.dreams")
    dice_weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the Dice loss on the soft labels, added to their cross entropy; segmentation only; not in Eq 5"
    )


class Tune(Section):
    """What `dreamteacher tune` measures to choose noise step and taps; no stage of the chain reads it."""

    T: Annotated[list[Count], Field(min_length=3)] | Literal["auto"] = Field(
        "auto", description="noise steps to try; auto: shares of teacher.T_train from 0 to a half"
    )
    images: Annotated[int, Field(ge=2)] = Field(64, description="train pictures, drawn by seed, for the measurement without labels")
    noises: Annotated[int, Field(ge=2)] = Field(2, description="forward passes for each picture and step, to separate noise from signal")
