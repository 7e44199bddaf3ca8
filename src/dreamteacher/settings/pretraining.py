"""Settings of pretraining: the teacher, the student, and what is distilled.

Equation, section and table numbers are those of the DreamTeacher paper (arXiv 2307.07487).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dreamteacher.settings.presets import by_size
from dreamteacher.settings.section import BATCH, PARTS, WARMUP, Augment, Count, Fraction, Name, Positive, Section, Training, require_known

OBJECTIVES = ("mse", "at", "cosine", "smooth_l1", "relational", "global")
OBJECTIVES_GROUP = "dreamteacher.objectives"  # of entry points, by which packages add terms


class Teacher(Training):
    """The generator, trained on the unlabelled pictures."""

    kind: str = Field(
        "ddpm",
        description="ddpm: as the paper's; edm: Karras et al. 2022, conditioned on its augmentation; docs/teachers.md lists "
        "the others, also those that are imported",
    )
    size: Literal["tiny", "mini", "small", "adm-256"] = Field(
        "tiny",
        description="widths and depth of the U-Net: the demo's, two larger ones, or the paper's (Tab 16); what follows is said at each",
    )
    pretrained: str | None = Field(
        None,
        description="a teacher that is taken as it is instead of training one: nuclei or nuclei-256, which come with the package, or the "
        "folder of a teacher of the same size, or of any that `dreamteacher import-teacher` made; null: train",
    )
    digest: str | None = Field(
        None,
        description="sha256 of the folder in teacher.pretrained, as `dreamteacher import-teacher` prints it; another one is refused. By it "
        "DVC and KFP see that the folder holds another teacher, which its path does not tell; null: whatever it holds is taken",
    )
    prediction: Literal["epsilon", "v_prediction"] = Field(
        "v_prediction",
        description="what the U-Net of a ddpm predicts: the noise, or v (Salimans & Ho 2022), which gives good samples after fewer steps "
        f"({by_size('teacher', 'prediction')})",
    )
    self_conditioning: bool = Field(
        False,
        description="the U-Net of a ddpm or edm also gets its own estimate of the picture (Chen et al. 2022), half of the time in "
        "training; to teach, that of a first pass: a third more time to train, about twice as much to teach",
    )
    conditional: bool = Field(
        False,
        description="a ddpm or edm is told the class of each train picture that has one (class folders, labels.csv), 9 times of 10; its "
        "features are taken without a class. It sees all labels, not few_labels of them",
    )
    resolution: Positive = Field(64, description=f"side of the random crops it learns from, pixels ({by_size('teacher', 'resolution')})")
    T_train: Positive = Field(1000, description="diffusion steps of the linear schedule, betas 1e-4 to 2e-2 (Tab 16)")
    samples: Count = Field(16, description="pictures in a sample grid; 0: none is drawn")
    sample_every: Positive = Field(
        500,
        description=f"steps between sample grids; all are logged, the last is kept ({by_size('teacher', 'sample_every')})",
    )
    sample_steps: Positive = Field(50, description="DDIM steps for a sample grid")
    r1_gamma: Annotated[float, Field(ge=0)] | None = Field(
        None, description="weight of R1, stylegan2 only (the paper's BDD100K: 10); null: 0.0002 x pixels of a picture / batch_size"
    )
    ada_target: Fraction | None = Field(
        0.6,
        description="mean sign of the discriminator on real pictures to which its augmentation adapts, stylegan2 only; null: no "
        "augmentation, for 100,000 pictures and more",
    )
    steps: Positive = Field(4500, description=f"optimiser steps ({by_size('teacher', 'steps')})")
    batch_size: Positive = Field(32, description=f"{BATCH} ({by_size('teacher', 'batch_size')})")
    accumulate: Positive = Field(1, description=f"{PARTS} ({by_size('teacher', 'accumulate')})")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description=f"peak learning rate ({by_size('teacher', 'lr')})")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="none in Tab 16")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="AdamW moments")
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        0.999, description=f"decay of the averaged weights, which become the teacher ({by_size('teacher', 'ema')})"
    )


class Student(Section):
    """The backbone to be pretrained and its neck."""

    backbone: str = Field("resnet18", description="any timm model that offers its maps; plain transformers get a pyramid")
    finest_stride: Literal[2, 4] = Field(
        4, description="stride of the pyramid's finest level: 4 as in the paper (256 px); 2 for objects of few pixels; see also taps"
    )
    width: Positive = Field(256, description="channels of the feature regressor (App D.1: 256), which is also the segmentation neck")
    neck: Literal["fpn-ppm", "fpn", "fpn-attention", "pafpn"] = Field(
        "fpn-ppm",
        description="what mixes the backbone's levels under the heads of the taps and of tasks (Tab 8): FPN with pyramid pooling, FPN, FPN "
        "with self-attention on the coarsest level, or FPN with a second path from the finest level up",
    )


class EncodingSettings(Section):
    """How pictures enter a diffusion model."""

    encoding: Literal["stochastic", "ddim", "stratified", "dream"] = Field(
        "stochastic",
        description="stochastic: noise drawn anew, to step T (best of Tab 10); ddim: deterministic inversion to T; stratified: for each "
        "picture a step of its own, drawn from strata in turn, which the student's heads see; dream: pictures that the teacher makes",
    )
    T: Count = Field(50, description="noise step of the encoding")
    strata: Annotated[list[Count], Field(min_length=2)] = Field(
        [10, 110, 210, 310], description="edges of the ranges of noise steps from which the encoding stratified draws; the last is left out"
    )
    passes: Positive = Field(10, description="passes of the generator for the encodings ddim, from the picture to T, and dream, from noise")

    @field_validator("strata")
    @classmethod
    def _in_order(cls, edges: list[int]) -> list[int]:
        if edges != sorted(set(edges)):
            raise ValueError("the edges must grow")
        return edges


class Distill(Training, EncodingSettings):
    """Pretraining without labels: feature distillation (Sec 3.1, Eq 1-3), or a method to compare it with."""

    method: str = Field(
        "features",
        description="features: distil the teacher's features, as the paper; team: those of several teachers; simclr, moco, byol, swav, "
        "densecl: compare two views; mae, simmim, spark, denoising: restore pictures; other packages may add methods. encoding, T, "
        "strata, passes, whitening, stats_images, objectives and margin are of features and team alone",
    )
    steps: Positive = Field(150, description=f"optimiser steps ({by_size('distill', 'steps')})")
    batch_size: Positive = Field(32, description=f"{BATCH} ({by_size('distill', 'batch_size')})")
    accumulate: Positive = Field(1, description=f"{PARTS} ({by_size('distill', 'accumulate')})")
    warmup_steps: Count = Field(20, description=f"{WARMUP} ({by_size('distill', 'warmup_steps')})")
    lr: Annotated[float, Field(gt=0)] = Field(2e-3, description=f"peak learning rate ({by_size('distill', 'lr')})")
    T: Count = Field(50, description="noise step of the encoding (Tab 17: 50, ImageNet 150; best of Tab 11: 250)")
    resolution: Positive = Field(64, description=f"side of the random crops, pixels ({by_size('distill', 'resolution')})")
    whitening: Literal["layernorm", "standardize", "phi-s"] = Field(
        "layernorm",
        description="W of Eq 1: LayerNorm over channels and places; standardize: by mean and std of each channel; phi-s: a rotation after "
        "which all channels have the same variance, and one scale (arXiv 2410.01680); the last two are measured on stats_images",
    )
    stats_images: Positive = Field(256, description="train pictures, drawn by seed, over which the teacher's features are measured")
    objectives: Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(min_length=1)] = Field(
        {"mse": 1.0, "at": 10.0},
        description="weights of the terms that are minimised; 0: logged alone. mse, Eq 1; at, Eq 2, whose weight is lambda_AT of Eq 3; "
        "cosine and smooth_l1, AM-RADIO's 0.9 and 0.1; relational: cosines between the places of a picture; global: the coarsest tap's "
        "average, from the embedding; other packages may add terms",
    )
    margin: Count = Field(
        0,
        description="width of the crops' border that loss and explained variance leave out, pixels, rounded up to whole cells of each tap: "
        "there the generator's features show the border more than the picture",
    )
    team: Annotated[list[Name], Field(min_length=2)] | None = Field(
        None, description="names of the teachers that the method team learns from; null: all of teachers"
    )
    drop: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="probability with which the method team leaves a teacher out of a step; the one learned least always counts"
    )
    augment: Augment = Field(
        "natural",
        description="random changes of the two views of simclr, moco, byol, swav and densecl: as finetune.augment, but with stronger "
        "changes of colour, and blur",
    )
    temperature: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of the similarities in simclr, moco, swav and densecl; null: as published, 0.1 (simclr, swav) or 0.2"
    )
    projector: Positive | None = Field(
        None,
        description="hidden channels of the projector of methods that compare views; null: those of the backbone's embedding, of byol "
        "twice as many, which of ResNet-50 are the published 2048 and 4096",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="decay of the momentum encoder of moco and densecl, which short runs reach step by step, and that at the first step of "
        "byol, which rises to 1 at the last; null: as published, 0.999, and 0.996 of byol",
    )
    queue: Count | None = Field(
        None,
        description="embeddings of earlier batches that moco and densecl compare with and swav assigns, too; null: as published, 65,536 "
        "(moco, densecl) or 3,840 (swav), but no more than train pictures; swav alone may have 0",
    )
    prototypes: Positive | None = Field(
        None, description="of swav; null: a tenth as many as train pictures, at most the published 3,000, at least 2"
    )
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of a picture that mae, simmim and spark hide; null: as published, 0.75 (mae) or 0.6"
    )
    monitor_every: Positive = Field(
        50,
        description="steps between measurements of explained variance on held-out unlabelled pictures "
        f"({by_size('distill', 'monitor_every')})",
    )
    monitor_images: Positive = Field(
        64, description="held-out unlabelled pictures for that measurement, from which the backbone does not learn features"
    )

    @field_validator("objectives")
    @classmethod
    def _known_and_in_order(cls, weights: dict[str, float]) -> dict[str, float]:
        """In one order, in which the terms are added and logged."""
        unknown = sorted(set(weights) - set(OBJECTIVES))
        for name in unknown:
            require_known(name, OBJECTIVES, OBJECTIVES_GROUP, "term")
        if not any(weights.values()):
            raise ValueError("one term at least needs a weight above 0")
        return {name: weights[name] for name in [*(n for n in OBJECTIVES if n in weights), *unknown]}


class Interpreter(Training, EncodingSettings):
    """The feature interpreter on the frozen generator (Sec 3.2, Eq 4, App D.2)."""

    encoding: Literal["stochastic", "ddim", "stratified"] = Field(
        "stochastic", description="as distill.encoding, whose dreams have no labels"
    )
    width: Positive = Field(256, description="channels of its fuse layers (App D.2: 256)")
    T: Count = Field(50, description="noise step of the encoding (App G.2: 50)")
    resolution: Positive = Field(64, description=f"side of the random crops, pixels ({by_size('interpreter', 'resolution')})")
    mirror: bool = Field(
        True, description="flip crops left to right half of the time; false where finetune.augment is no-flip or none, as labels change"
    )
    dice_weight: Annotated[float, Field(ge=0)] = Field(3.0, description="lambda_d of Eq 4; segmentation only")
    dropout: Fraction = Field(0.1, description="before the logits (App D.2)")
    lr: Annotated[float, Field(gt=0)] = Field(4e-3, description="peak learning rate (App G.2)")


class Labels(Training):
    """Label distillation alone (Eq 5) or mixed with feature distillation (Eq 6)."""

    mode: Literal["mix", "labels"] = Field("mix", description="mix: feature distillation goes on beside it (Eq 6); labels: alone (Eq 5)")
    start: Literal["features", "fresh"] = Field(
        "features", description="start from the feature-distilled backbone and neck, or from random weights"
    )
    tau: Annotated[float, Field(gt=0)] = Field(4.0, description="temperature of both distributions (Eq 5)")
    label_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="lambda_ld of Eq 6")
    dreams: Fraction = Field(
        0.0,
        description="share of the steps whose pictures the teacher, a diffusion model, makes of noise, with the interpreter's labels for "
        "them, as DatasetGAN's; the others are of train pictures",
    )
    passes: Positive = Field(20, description="about how many passes of the generator a picture of labels.dreams takes")
    dice_weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the Dice loss on the soft labels beside their cross entropy; segmentation only; none in Eq 5"
    )


class Tune(Section):
    """What `dreamteacher tune` measures to choose noise step and taps; no stage of the chain reads it."""

    T: Annotated[list[Count], Field(min_length=3)] | Literal["auto"] = Field(
        "auto", description="noise steps that are tried; auto: shares of teacher.T_train from 0 to a half"
    )
    images: Annotated[int, Field(ge=2)] = Field(64, description="train pictures, drawn by seed, of which no label is read")
    noises: Annotated[int, Field(ge=2)] = Field(2, description="passes for each picture and step, which tell noise from signal")
