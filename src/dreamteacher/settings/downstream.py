"""Settings of what lies before and after pretraining: pictures in; fine-tuning, evaluation, export, serving, retraining."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dreamteacher.settings.section import Augment, Count, Fraction, Positive, Section, Training, Word, require_known

AUTO = "auto"
HEADS = {"faster-rcnn": "detection", "mask-rcnn": "instances"}  # other heads than a task's own -> the task
HEADS_GROUP = "dreamteacher.heads"  # of entry points, by which packages add heads


class Ingest(Section):
    """Any pictures in, one data set out."""

    source: str = Field(
        "samples/nuclei",
        description="folder or s3:// prefix (with all below it), text file of paths, or WebDataset shards (path or URL, braces allowed)",
    )
    labels: Literal["auto", "none", "folders", "masks", "csv", "boxes"] = Field(
        "auto",
        description="where labels come from: class folders, masks/ beside images/, labels.csv (or metadata.csv), boxes (COCO, Pascal "
        "VOC, YOLO); auto: what is found, masks before boxes",
    )
    task: Word = Field(
        "auto",
        description="what is learned from the labels: segmentation, classification, detection, instances, keypoints, multilabel, depth, or "
        "a task of another package; auto: classes of masks or of pictures, several where labels.csv has a column for each, or boxes, as "
        "labels are",
    )
    val_fraction: Fraction = Field(
        0.1, description="share of the pictures kept for the final figure, by content hash, where the source has no train/ and val/"
    )
    short_side: Positive | None = Field(256, description="larger pictures are reduced to this short side, pixels; null: kept as they are")
    min_side: Positive = Field(16, description="pictures with a shorter side are quarantined, pixels")
    max_pixels: Positive = Field(100_000_000, description="larger pictures are quarantined before decoding (decompression bombs)")
    max_bad_fraction: Fraction = Field(0.05, description="the stage fails when more of the files than this are quarantined")
    shard_mb: Positive = Field(256, description="size of a WebDataset shard, MB")


class Finetune(Training):
    """The downstream task, the same budget for every initialisation."""

    resolution: Positive = Field(64, description="side of the training crops, pixels")
    head: str = Field(
        AUTO,
        description="auto: the task's own, of one stage; faster-rcnn: two stages, for detection; mask-rcnn: two stages, for instances; or "
        "a head of another package",
    )
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
    norm_eval: bool = Field(
        False,
        description="batch norms of what is pretrained (the backbone, of label_recipes also neck and head, a carried neck) keep their "
        "statistics of all pictures and normalise by them, instead of those of the few labelled ones; scratch has none to keep",
    )

    @field_validator("head")
    @classmethod
    def _is_known(cls, head: str) -> str:
        require_known(head, [AUTO, *HEADS], HEADS_GROUP, "head")
        return head


class Evaluate(Section):
    """Figures and pictures on the untouched validation split."""

    batch_size: Positive = Field(8, description="pictures at once")
    overlays: Count = Field(8, description="pictures drawn with their predictions")
    knn_k: Positive = Field(20, description="neighbours of the frozen kNN read-out")


class Assess(Section):
    """What `dreamteacher assess` spends to say what to expect of pretraining; no stage of the chain reads it."""

    minutes: Annotated[float, Field(gt=0)] = Field(
        10.0, description="about how long it may take here; trainings are as many, and as long up to finetune.steps, as fit"
    )
    steps: Positive | None = Field(
        None, description="optimiser steps of a training, whatever the minutes; null: finetune.steps, or as many as fit into the minutes"
    )
    draws: Annotated[int, Field(ge=2)] = Field(
        3, description="draws of the few labels and random weights, over which means and spreads are taken; at most"
    )
    price_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="of this machine, in any currency, to price the chain; null: time only"
    )


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

    name: Word = Field("dreamteacher", description="prefix of the model names in Triton and MLflow")
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
    instances: Positive = Field(
        2,
        description="instances of each model on one server; on CPU, instances x threads should be its cores, but 2 at least: Triton 24.10 "
        "leaves a single one idle while requests wait",
    )
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
