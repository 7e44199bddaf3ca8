"""Settings of the stages before and after pretraining: ingest, fine-tuning, evaluation, export, serving, retraining."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dreamteacher.settings.section import Augment, Count, Fraction, Positive, Section, Seed, Training, Word, require_known

AUTO = "auto"
HEADS = {"faster-rcnn": "detection", "mask-rcnn": "instances"}  # other heads than a task's own -> the task
HEADS_GROUP = "dreamteacher.heads"  # of entry points, by which packages add heads


class Ingest(Section):
    """How pictures and labels become a data set."""

    source: str = Field(
        "samples/nuclei",
        description="folder or s3:// prefix (read recursively), text file of paths, or WebDataset shards (path or URL, braces allowed)",
    )
    labels: Literal["auto", "none", "folders", "masks", "csv", "boxes"] = Field(
        "auto",
        description="label format: class folders, masks/ beside images/, labels.csv (or metadata.csv), boxes (COCO, Pascal VOC, "
        "YOLO); auto: whichever is found, masks before boxes",
    )
    task: Word = Field(
        "auto",
        description="what to learn from the labels: segmentation, classification, detection, instances, keypoints, multilabel, depth, "
        "or a task of another package; auto: determined by the labels (masks: segmentation, boxes: detection, one class "
        "per picture: classification, labels.csv with a column per class: multilabel)",
    )
    val_fraction: Fraction = Field(
        0.1, description="share of the pictures held out for validation, by content hash, if the source has no train/ and val/"
    )
    short_side: Positive | None = Field(
        256, description="larger pictures are downscaled to this short side, pixels; null: kept as they are"
    )
    min_side: Positive = Field(16, description="pictures with a shorter side are quarantined, pixels")
    max_pixels: Positive = Field(100_000_000, description="larger pictures are quarantined before decoding (decompression bombs)")
    max_bad_fraction: Fraction = Field(0.05, description="the stage fails if a larger share of the files is quarantined")
    shard_mb: Positive = Field(256, description="size of a WebDataset shard, MB")


class Finetune(Training):
    """Training on the downstream task, with the same budget for every initialisation."""

    resolution: Positive = Field(64, description="side of the training crops, pixels")
    head: str = Field(
        AUTO,
        description="auto: the task's own one-stage head; faster-rcnn: two stages, for detection; mask-rcnn: two stages, for "
        "instances; or a head of another package",
    )
    augment: Augment = Field(
        "natural",
        description="label-preserving augmentation; natural (roads, faces, products): scale, horizontal flips, brightness, contrast, "
        "saturation; overhead (microscopy, satellite): also vertical flips and quarter turns; no-flip (text, traffic "
        "signs, left and right of a body): natural without flips; none: only crops, if size or colour is the label",
    )
    dice_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="weight of the Dice loss, added to the cross entropy; segmentation only"
    )
    backbone_lr_scale: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="learning rate of a pretrained backbone relative to lr; scratch always uses lr"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="layer-wise learning rate decay of a pretrained backbone, away from the head, with layers as in timm; 1: no "
        "decay; not for scratch",
    )
    head_steps: Count = Field(
        0,
        description="first steps that train only head and neck, with a pretrained backbone frozen and its norms in eval mode; then "
        "the backbone's learning rate warms up within the remaining steps; if equal to steps, it stays frozen; not for "
        "scratch",
    )
    carry_neck: bool = Field(
        False,
        description="start from the neck of feature distillation too, not only from the backbone; without effect for other pretrainings "
        "and for tasks whose head has no neck (classification, multilabel)",
    )
    norm_eval: bool = Field(
        False,
        description="keep pretrained batch norms (of the backbone; with label_recipes also of neck and head; of a carried neck) in "
        "eval mode, with their statistics of all pictures instead of the few labelled ones; not for scratch",
    )

    @field_validator("head")
    @classmethod
    def _is_known(cls, head: str) -> str:
        require_known(head, [AUTO, *HEADS], HEADS_GROUP, "head")
        return head


class Evaluate(Section):
    """Metrics and pictures on the validation split."""

    batch_size: Positive = Field(8, description="pictures per batch")
    overlays: Count = Field(8, description="pictures drawn with their predictions")
    knn_k: Positive = Field(20, description="number of neighbours of the kNN probe of the frozen backbone")


class Assess(Section):
    """Budget of `dreamteacher assess`, which estimates the gain of pretraining; no stage of the chain reads it."""

    minutes: Annotated[float, Field(gt=0)] = Field(
        10.0, description="approximate total time; number and length of the trainings are chosen to fit, at most finetune.steps each"
    )
    steps: Positive | None = Field(
        None,
        description="optimiser steps of each training, regardless of minutes; null: finetune.steps, or as many as fit into the minutes",
    )
    draws: Annotated[int, Field(ge=2)] = Field(
        3, description="maximum number of draws of few labels and random weights, for means and standard deviations"
    )
    price_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="price of this machine, in any currency, to estimate the cost of the chain; null: only time"
    )


class Export(Section):
    """ONNX files of the backbone and of the task model."""

    init: str = Field("mix", description="initialisation of the exported model; must be among compare.inits")
    seed: Seed = Field(0, description="seed of the exported model; must be among compare.seeds")
    size: Annotated[int, Field(gt=0, multiple_of=32)] = Field(
        128, description="side of the example input, pixels; other multiples of 32 work if the model allows them"
    )
    opset: Literal[17, 18] = Field(18, description="ONNX opset; current Triton images load both")
    tolerance: Annotated[float, Field(gt=0)] = Field(
        1e-4, description="maximum of |onnxruntime - torch| in fp32; a larger difference fails the stage"
    )
    precision: Literal["fp32", "fp16"] = Field(
        "fp32", description="precision of the served model on GPUs (publish.gpu); fp16: with TensorRT, checked here on validation pictures"
    )
    agreement: Fraction = Field(0.99, description="minimum share of decisions that fp16 must not change; a smaller share fails the stage")


class Publish(Section):
    """Triton model repositories and the registered version."""

    name: Word = Field("dreamteacher", description="prefix of the model names in Triton and MLflow")
    max_batch_size: Positive = Field(64, description="largest batch, from one request or several that Triton batches together")
    preferred_batch_size: Positive | None = Field(
        None,
        description="most pictures that Triton batches from several requests; null: max_batch_size on GPU, and 4 on CPU, where larger "
        "batches only make requests wait for each other",
    )
    queue_delay_us: Count = Field(
        0, description="longest time that a smaller batch waits for further requests, microseconds; 0: a free instance takes what is queued"
    )
    max_queue: Positive | None = Field(
        None,
        description="maximum number of queued requests per model, more are refused at once; null: 16 per instance, on GPU twice "
        "max_batch_size",
    )
    instances: Positive = Field(
        2,
        description="instances of each model on one server; on CPU, instances x threads should equal its cores, with at least 2 "
        "instances: Triton 24.10 leaves a single one idle while requests wait",
    )
    threads: Positive = Field(
        1,
        description="threads of each instance on CPU; several one-thread instances have the throughput of one instance with several "
        "threads, and lose less of it beside other work; more threads lower the latency of a single picture",
    )
    gpu: bool = Field(False, description="production instances on GPU (KIND_GPU) instead of CPU")
    pictures: bool = Field(
        True,
        description="also serve NAME-pictures, which takes encoded picture files; the server's Python needs numpy and Pillow for it, "
        "which NVIDIA's images may lack",
    )
    max_pixels: Positive = Field(
        50_000_000, description="NAME-pictures refuses larger pictures before decoding, which needs up to 8 bytes per pixel"
    )
    max_request_pixels: Positive = Field(
        20_000_000,
        description="NAME-pictures refuses pictures with more pixels after preprocessing, and NAME requests with more, since a model "
        "needs hundreds of bytes per pixel; NAME only if the python backend runs it (`dreamteacher serve`)",
    )


class Retrain(Section):
    """Retraining on new pictures, and the gates that a model must pass to be promoted."""

    incoming: str | None = Field(
        None, description="folder or s3:// prefix where unlabelled pictures arrive, in addition to ingest.source; null: none"
    )
    min_new_images: Count = Field(100, description="with fewer new train pictures than this, nothing is trained")
    drift_images: Positive = Field(500, description="number of new and of old pictures compared for drift")
    metric_floor: Fraction = Field(
        0.5, description="gate: minimum mIoU or top-1 of the exported initialisation, for the mean over seeds and for the exported seed"
    )
    regression_z: Annotated[float, Field(ge=0)] = Field(
        1.0,
        description="gate: how many standard errors the mean and the exported seed may be below the champion's mean; the error comes "
        "from the spread of the champion's seeds",
    )
    latency_ms: Annotated[float, Field(gt=0)] | None = Field(
        200.0, description="gate: maximum median time of one export.size picture in onnxruntime on CPU, milliseconds; null: not measured"
    )
    latency_runs: Positive = Field(30, description="pictures timed in each of three rounds; the best round counts")
