"""Every setting: name, type, range, default, unit and source, once. `params.yaml` holds the values of a project.

Equation, section and table numbers are those of the DreamTeacher paper (arXiv 2307.07487).
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from dreamteacher.settings.presets import BY_KIND, PRESETS, SIZED, auto_taps, by_size, strides

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
_WARMUP = "linear warm-up before the cosine decay to 0, steps"
_BATCH = "pictures per optimiser step, over all processes and accumulation parts"
_PARTS = (
    "parts into which each process splits its share of the batch, to save memory; loss and gradient stay those of the whole batch, but "
    "batch normalisation takes its statistics from each part"
)
Taps = Annotated[list[Positive], Field(min_length=1)] | Literal["auto"]
_OR_NOTHING = BeforeValidator(lambda value: {} if value is None else value)  # `NAME:` without anything after it
OBJECTIVES = ("mse", "at", "cosine", "smooth_l1", "relational", "global")
OBJECTIVES_GROUP = "dreamteacher.objectives"  # of entry points, by which packages add terms
Augment = Literal["natural", "overhead", "no-flip", "none"]
NO_TEACHER = "none"  # of recipes whose method needs none
ALL_TEACHERS = "."  # of recipes that learn from a team: the folder that holds them
FRESH = ("scratch", "imagenet")  # initialisations that no recipe makes
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]  # of a teacher or a recipe, and of a folder


class Section(BaseModel):
    """A group of settings; unknown keys are refused and values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Training(Section):
    """What every trained stage shares; each stage overrides the defaults that differ."""

    steps: Positive = Field(1000, description="optimiser steps")
    batch_size: Positive = Field(32, description=_BATCH)
    accumulate: Positive = Field(1, description=_PARTS)
    optimizer: Literal["adamw", "lamb", "sgd"] = Field("adamw", description="Tab 17: AdamW; LAMB for batches of 2048 and more")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.05, description="Tab 17; not applied to biases, norms and what timm's models exempt, such as position embeddings"
    )
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.95), description="AdamW and LAMB moments, Tab 17; sgd takes the first as momentum")
    warmup_steps: Count = Field(100, description=_WARMUP)
    clip: Annotated[float, Field(gt=0)] | None = Field(1.0, description="largest gradient norm; null: no clipping")
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="decay of the averaged weights; null: none are kept")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the device computes it fast, else fp32")
    workers: Count | Literal["auto"] = Field("auto", description="loader processes; auto: 0 where the decoded set fits in memory")
    checkpoint_every: Positive = Field(500, description="steps between checkpoints; the last three are kept")
    log_every: Positive = Field(25, description="steps between records")


class Ingest(Section):
    """Any pictures in, one data set out."""

    source: str = Field(
        "samples/nuclei",
        description="folder or s3:// prefix (with all below it), text file of paths, or WebDataset shards (path or URL, braces allowed)",
    )
    labels: Literal["auto", "none", "folders", "masks", "csv", "boxes"] = Field(
        "auto",
        description="where labels come from: class folders, masks/ beside images/, labels.csv, boxes (COCO, Pascal VOC, YOLO); auto: what "
        "is found, masks before boxes",
    )
    val_fraction: Fraction = Field(
        0.1, description="share of the pictures kept for the final figure, by content hash, where the source has no train/ and val/"
    )
    short_side: Positive | None = Field(256, description="larger pictures are reduced to this short side, pixels; null: kept as they are")
    min_side: Positive = Field(16, description="pictures with a shorter side are quarantined, pixels")
    max_pixels: Positive = Field(100_000_000, description="larger pictures are quarantined before decoding (decompression bombs)")
    max_bad_fraction: Fraction = Field(0.05, description="the stage fails when more of the files than this are quarantined")
    shard_mb: Positive = Field(256, description="size of a WebDataset shard, MB")


class Teacher(Training):
    """The generator, trained on the unlabelled pictures."""

    kind: str = Field(
        "ddpm",
        description="ddpm: as the paper's; edm: Karras et al. 2022, told of its augmentation; docs/teachers.md lists "
        "the others, also those that are imported",
    )
    size: Literal["tiny", "small", "adm-256"] = Field(
        "tiny", description="widths and depth of the U-Net: the demo's, a larger one, or the paper's (Tab 16); what follows is said at each"
    )
    pretrained: str | None = Field(
        None,
        description="a teacher that is taken as it is instead of training one: nuclei, which comes with the package, or the folder of a "
        "teacher of the same size, or of any that `dreamteacher import-teacher` made; null: train",
    )
    prediction: Literal["epsilon", "v_prediction"] = Field(
        "v_prediction",
        description="what the U-Net of a ddpm predicts: the noise, or v (Salimans & Ho 2022), which gives good samples after fewer steps "
        f"({by_size('teacher', 'prediction')})",
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
    batch_size: Positive = Field(32, description=f"{_BATCH} ({by_size('teacher', 'batch_size')})")
    accumulate: Positive = Field(1, description=f"{_PARTS} ({by_size('teacher', 'accumulate')})")
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
        "picture a step of its own, drawn from strata in turn, which the student's heads are told; dream: pictures that the teacher makes",
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
    batch_size: Positive = Field(32, description=f"{_BATCH} ({by_size('distill', 'batch_size')})")
    accumulate: Positive = Field(1, description=f"{_PARTS} ({by_size('distill', 'accumulate')})")
    warmup_steps: Count = Field(20, description=f"{_WARMUP} ({by_size('distill', 'warmup_steps')})")
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
        description="decay of the momentum encoder of moco, byol and densecl, which short runs reach step by step; null: as published, "
        "0.996 (byol) or 0.999",
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
        offered = {point.name for point in entry_points(group=OBJECTIVES_GROUP)} if unknown else set()
        for name in unknown:
            if name not in offered:
                near = difflib.get_close_matches(name, [*OBJECTIVES, *offered], 1) or [*OBJECTIVES, *sorted(offered)]
                raise ValueError(f"there is no term {name!r}; name {' or '.join(near)}")
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


class Finetune(Training):
    """The downstream task, the same budget for every initialisation."""

    resolution: Positive = Field(64, description="side of the training crops, pixels")
    augment: Augment = Field(
        "natural",
        description="random changes that leave the labels true: natural (roads, faces, products): scale, horizontal flips, brightness, "
        "contrast, saturation; overhead (microscopy, satellite): also vertical flips and quarter turns; no-flip (text, traffic signs, "
        "left and right of a body): natural without flips; none: crops alone, where size or colour is the label",
    )
    dice_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="weight of the Dice loss beside the cross entropy; segmentation only"
    )
    backbone_lr_scale: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="learning rate of a pretrained backbone relative to lr; scratch always takes lr"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="factor by which a pretrained backbone's learning rate falls from layer to layer, counted from the head as timm does; "
        "1: all layers learn alike; scratch always does",
    )
    head_steps: Count = Field(
        0,
        description="first steps in which only head and neck learn and a pretrained backbone stays frozen, its norms in eval mode; then it "
        "warms up as well, in what is left of steps; equal to steps: it stays frozen; scratch has none",
    )
    carry_neck: bool = Field(
        False, description="of recipes without labels: the head's neck starts from that of the feature regressor too; for tasks with a neck"
    )


class Recipe(Section):
    """How a backbone is pretrained without labels: groups given here hold what differs from those of all recipes."""

    teacher: Name | Literal["."] = Field(description="which of teachers; none: the method needs no teacher; '.': all, for the method team")
    taps: Taps | None = Field(None, description="null: those of all recipes")
    student: Annotated[dict[str, Any], _OR_NOTHING] = Field({}, description="settings of student that differ, for fine-tuning as well")
    distill: Annotated[dict[str, Any], _OR_NOTHING] = Field({}, description="settings of distill that differ")


class LabelRecipe(Section):
    """How a backbone is pretrained with the few labels, from what a recipe without them made."""

    features: Name = Field(description="which of recipes; its teacher, taps, student and distill are this one's too")
    interpreter: Annotated[dict[str, Any], _OR_NOTHING] = Field({}, description="settings of interpreter that differ")
    labels: Annotated[dict[str, Any], _OR_NOTHING] = Field({}, description="settings of labels that differ")


class Compare(Section):
    """What is compared. A group of its own, so that one seed more re-runs nothing that is done."""

    inits: Annotated[list[str], Field(min_length=1)] = Field(
        ["scratch", "features", "mix"],
        description="initialisations to fine-tune from: scratch, imagenet (timm's weights), and names of recipes and label_recipes",
    )
    seeds: Annotated[list[int], Field(min_length=1)] = Field(
        [0, 1, 2], description="each draws its own few labels and its own random weights"
    )


class Evaluate(Section):
    """Figures and pictures on the untouched validation split."""

    batch_size: Positive = Field(8, description="pictures at once")
    overlays: Count = Field(8, description="pictures drawn with their predictions")
    knn_k: Positive = Field(20, description="neighbours of the frozen kNN read-out")


class Export(Section):
    """ONNX files of the backbone and of the task model."""

    init: str = Field("mix", description="which fine-tuned model is exported; must be among compare.inits")
    seed: int = Field(0, description="which of its seeds; must be among compare.seeds")
    size: Annotated[int, Field(gt=0, multiple_of=32)] = Field(
        128, description="side of the example input, pixels; other multiples of 32 work where the model allows them"
    )
    opset: Literal[17, 18] = Field(18, description="current Triton images load both")
    tolerance: Annotated[float, Field(gt=0)] = Field(1e-4, description="largest |onnxruntime - torch| in fp32; more fails the stage")
    precision: Literal["fp32", "fp16"] = Field(
        "fp32", description="with what GPUs compute the served model (publish.gpu); fp16: by TensorRT, checked here on validation pictures"
    )
    agreement: Fraction = Field(0.99, description="least share of decisions that fp16 must leave as they are; less fails the stage")


class Publish(Section):
    """Triton model repositories and the registered version."""

    name: str = Field("dreamteacher", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", description="prefix of the model names in Triton and MLflow")
    max_batch_size: Positive = Field(64, description="largest batch, of one request or of several that Triton joins")
    preferred_batch_size: Positive | None = Field(
        None,
        description="most pictures of several requests that Triton joins; null: max_batch_size on GPU, and 4 on CPU, where more only wait "
        "for each other",
    )
    queue_delay_us: Count = Field(
        0, description="longest wait of a smaller batch for further requests, microseconds; 0: an instance that is free takes what waits"
    )
    max_queue: Positive | None = Field(
        None,
        description="requests that may wait for one model, more are refused at once; null: 16 an instance, on GPU twice max_batch_size",
    )
    instances: Positive = Field(2, description="instances of each model on one server; on CPU, instances x threads should be its cores")
    threads: Positive = Field(
        1,
        description="threads of each instance on CPU; several instances of one thread compute as many pictures as one of several, and keep "
        "their speed beside other work, where threads that wait for each other collapse; more shorten the time of a single picture",
    )
    gpu: bool = Field(False, description="production instances on GPU (KIND_GPU) instead of CPU")
    pictures: bool = Field(
        True,
        description="serve NAME-pictures as well, which takes the bytes of pictures; the server's Python needs numpy and Pillow for it, "
        "which NVIDIA's images may lack",
    )
    max_pixels: Positive = Field(
        50_000_000, description="larger pictures are refused by NAME-pictures before decoding; decoding takes up to 8 bytes a pixel"
    )
    max_request_pixels: Positive = Field(
        20_000_000,
        description="prepared pictures with more pixels are refused by NAME-pictures, and requests with more by NAME, since a model takes "
        "hundreds of bytes a pixel; by NAME only where the python backend runs it (`dreamteacher serve`)",
    )


class Retrain(Section):
    """Training again on what has arrived, and what a model must show to be promoted."""

    incoming: str | None = Field(
        None, description="folder or s3:// prefix where unlabelled pictures arrive, beside ingest.source; null: nothing arrives elsewhere"
    )
    min_new_images: Count = Field(100, description="with fewer new train pictures than this nothing is trained")
    drift_images: Positive = Field(500, description="new and old pictures, each, that are compared for drift")
    metric_floor: Fraction = Field(
        0.5, description="gate: least mIoU or top-1 of the exported initialisation, as mean over seeds and of the seed that is exported"
    )
    regression_z: Annotated[float, Field(ge=0)] = Field(
        1.0, description="gate: standard errors by which both may be below the champion's mean; they come from the spread of its seeds"
    )
    latency_ms: Annotated[float, Field(gt=0)] | None = Field(
        200.0, description="gate: median time of one export.size picture in onnxruntime on CPU, milliseconds; null: not measured"
    )
    latency_runs: Positive = Field(30, description="pictures timed in each of three rounds, of which the best counts")


class Tune(Section):
    """What `dreamteacher tune` measures to choose noise step and taps; no stage of the chain reads it."""

    T: Annotated[list[Count], Field(min_length=3)] | Literal["auto"] = Field(
        "auto", description="noise steps that are tried; auto: shares of teacher.T_train from 0 to a half"
    )
    images: Annotated[int, Field(ge=2)] = Field(64, description="train pictures, drawn by seed, of which no label is read")
    noises: Annotated[int, Field(ge=2)] = Field(2, description="passes for each picture and step, by which the share of the noise is told")


class Params(Section):
    """All settings of a project."""

    seed: int = Field(0, description="seed of the stages that run once (teacher, features)")
    few_labels: Positive | None = Field(
        None, description="how many labelled train pictures the interpreter and fine-tuning may see, drawn by seed; null: all"
    )
    taps: Taps = Field(
        "auto",
        description="strides of the generator's decoder levels that are regressed and interpreted; auto: the coarsest four of 2 to 32, "
        "which of adm-256 are the paper's 4 to 32",
    )
    teachers: Annotated[dict[Name, Annotated[dict[str, Any], _OR_NOTHING]], Field(min_length=1)] = Field(
        {"own": {}}, description="{NAME: settings of teacher that differ}; each is trained, or taken, once"
    )
    recipes: Annotated[dict[Name, Recipe], Field(min_length=1)] = Field(
        {"features": Recipe(teacher="own")},
        description="{NAME: {teacher: NAME, and what differs of taps, student, distill}}: backbones pretrained without labels",
    )
    label_recipes: dict[Name, LabelRecipe] = Field(
        {"mix": LabelRecipe(features="features")},
        description="{NAME: {features: NAME of recipes, and what differs of interpreter, labels}}: backbones pretrained with few labels",
    )
    ingest: Ingest = Ingest()
    teacher: Teacher = Teacher()
    student: Student = Student()
    distill: Distill = Distill()
    interpreter: Interpreter = Interpreter()
    labels: Labels = Labels()
    finetune: Finetune = Finetune()
    compare: Compare = Compare()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    publish: Publish = Publish()
    retrain: Retrain = Retrain()
    tune: Tune = Tune()

    @model_validator(mode="after")
    def _follow_the_size(self) -> Params:
        """What is left open is that of teacher.size and teacher.kind."""
        for name, values in [*PRESETS[self.teacher.size].items(), *BY_KIND.get(self.teacher.kind, {}).items()]:
            group = getattr(self, name)
            left_open = {key: value for key, value in values.items() if key not in group.model_fields_set}
            followed = group.model_copy(update=left_open)
            followed.__pydantic_fields_set__ = set(group.model_fields_set)  # still open: another teacher may have another size
            self.__dict__[name] = followed  # frozen, but not complete before this
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> Params:
        taken = [*FRESH, *self.recipes, *self.label_recipes]
        if twice := next((name for name in taken if taken.count(name) > 1), None):
            raise ValueError(f"{twice!r} names two initialisations; scratch, imagenet, recipes and label_recipes need names of their own")
        named = [
            *(
                (f"recipes.{name}.teacher", recipe.teacher, "teachers", list(self.teachers))
                for name, recipe in self.recipes.items()
                if recipe.teacher not in (NO_TEACHER, ALL_TEACHERS)
            ),
            *(
                (f"label_recipes.{name}.features", recipe.features, "recipes", list(self.recipes))
                for name, recipe in self.label_recipes.items()
            ),
            *(("compare.inits", init, "scratch, imagenet, recipes or label_recipes", taken) for init in self.compare.inits),
            ("export.init", self.export.init, "compare.inits", self.compare.inits),
        ]
        for setting, name, group, possible in named:
            if name not in possible:
                near = difflib.get_close_matches(name, possible, 1)
                raise ValueError(
                    f"{setting} = {name!r} is not among {group}; " + (f"did you mean {near[0]!r}?" if near else f"there are {possible}")
                )
        if NO_TEACHER in self.teachers:
            raise ValueError(f"teachers.{NO_TEACHER} stands for no teacher in recipes; give it another name")
        for name, recipe in self.label_recipes.items():
            if self.recipes[recipe.features].teacher in (NO_TEACHER, ALL_TEACHERS):
                raise ValueError(f"label_recipes.{name}.features = {recipe.features!r} has no teacher to read labels from; name another")
        if self.export.seed not in self.compare.seeds:
            raise ValueError(f"export.seed = {self.export.seed!r} is not among compare.seeds = {self.compare.seeds}; set it to one of them")
        for name, values in self.compare:
            if len(set(values)) < len(values):
                raise ValueError(f"compare.{name} = {values} names one twice")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Params:
        """What would otherwise fail hours later, in another stage."""
        if self.teacher.kind in SIZED:
            self._fits_the_size()
        return self

    def _fits_the_size(self) -> None:
        """Of other kinds the teacher's folder says what fits, which the stages read."""
        for name, group in (("distill", self.distill), ("interpreter", self.interpreter)):
            steps = self.teacher.T_train
            if group.encoding == "stratified":
                if group.strata[-1] > steps:
                    raise ValueError(f"{name}.strata = {group.strata} must end at teacher.T_train = {steps} or before")
            elif steps <= group.T:
                raise ValueError(f"{name}.T = {group.T} must be below teacher.T_train = {steps}")
        size = f"teacher.size = {self.teacher.size!r}"
        offered = strides(self.teacher.size)
        if absent := [stride for stride in self.taps if stride not in offered] if self.taps != "auto" else []:
            raise ValueError(f"taps = {self.taps}: {size} has no decoder level at stride {absent[0]}; take some of {offered}, or auto")
        for name in ("teacher", "distill", "interpreter"):
            side = getattr(self, name).resolution
            if side % offered[-1]:
                raise ValueError(f"{name}.resolution = {side} does not fit {size}: take a multiple of {offered[-1]}")
        coarsest = max(auto_taps(offered) if self.taps == "auto" else self.taps)
        cells = self.distill.resolution // coarsest
        if self.distill.margin and cells - 2 * -(-self.distill.margin // coarsest) < 2:
            raise ValueError(
                f"distill.margin = {self.distill.margin} leaves less than 2 x 2 of the {cells} x {cells} cells at stride {coarsest}; "
                f"lower it to {max(0, cells - 2) // 2 * coarsest}, raise distill.resolution, or leave that stride out of taps"
            )

    @model_validator(mode="after")
    def _head_steps_end_with_the_run(self) -> Params:
        if self.finetune.head_steps > self.finetune.steps:
            raise ValueError(
                f"finetune.head_steps = {self.finetune.head_steps} is more than finetune.steps = {self.finetune.steps}, of which they are "
                "the first; lower it"
            )
        return self

    @model_validator(mode="after")
    def _mirrors_no_untrue_labels(self) -> Params:
        if self.interpreter.mirror and self.finetune.augment in ("no-flip", "none"):
            raise ValueError(
                f"finetune.augment = {self.finetune.augment!r} means that labels do not hold for mirrored pictures, "
                "from which the interpreter would learn, too; set interpreter.mirror = false"
            )
        return self

    def section(self, *names: str) -> dict[str, Any]:
        """The named settings as plain data, to be recorded and digested: `section("seed", "teacher")`."""
        plain = self.model_dump(mode="json")
        return {name: plain[name] for name in names}
