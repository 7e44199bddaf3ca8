"""Shared by both pipelines: from a pretrained backbone and few labels to fine-tuned models, with or without label distillation."""

from collections.abc import Callable
from typing import Any, NamedTuple

from kfp.dsl import ParallelFor, PipelineTask

from components.distill_labels import distill_labels
from components.finetune import finetune
from components.train_interpreter import train_interpreter

Step = Callable[[str, PipelineTask], PipelineTask]

STAGES = (
    "train_teacher",
    "distill_features",
    "train_interpreter",
    "distill_labels",
    "finetune",
    "evaluate",
    "export_onnx",
    "publish",
    "report",
)


class Tuned(NamedTuple):
    """Loop outputs for `Collected`: one for each seed, or for each label recipe and seed."""

    interpreters: Any
    labels: Any
    from_features: Any
    from_labels: Any


def fine_tune(
    step: Step,
    *,
    data: Any,
    teacher: Any,
    features: Any,
    recipe: Any,
    mixed: Any,
    seeds: Any,
    interpreter_settings: Any,
    labels_settings: Any,
    finetune_settings: Any,
    changes: Any,
    parallelism: int,
) -> Tuned:
    """Fine-tune from `features` for all seeds, and from label distillation for all label recipes and seeds.

    Args:
        step: sets resources and environment of each task.
        data: the data set.
        teacher: the generator.
        features: the feature-distilled backbone.
        recipe: its name.
        mixed: {"init", "seed", "interpreter", "labels", "finetune"} of each label distillation; the last three are its recipe's overrides.
        seeds: of the fine-tunings from `features`.
        interpreter_settings, labels_settings, finetune_settings: of train-interpreter, distill-labels and finetune.
        changes: the recipe's overrides of finetune_settings.
        parallelism: parallel loop iterations; 0: all.
    """
    with ParallelFor(seeds, name="fine-tune-features", parallelism=parallelism) as seed:
        tuning = finetune(data=data, init=recipe, seed=seed, backbone=features, settings=finetune_settings, changes=changes)
        from_features = step("finetune", tuning).outputs["out"]
    with ParallelFor(mixed, name="distill-and-fine-tune-labels", parallelism=parallelism) as item:
        given = {"data": data, "teacher": teacher, "recipe": item.init, "seed": item.seed}
        interpreter = step(
            "train-interpreter", train_interpreter(**given, settings=interpreter_settings, changes=item.interpreter)
        ).outputs["out"]
        given |= {"features": features, "interpreter": interpreter}
        distilling = distill_labels(**given, settings=labels_settings, changes=item.labels)
        labels = step("distill-labels", distilling).outputs["out"]
        own = {"settings": finetune_settings, "changes": item.finetune}
        tuning = finetune(data=data, init=item.init, seed=item.seed, backbone=labels, **own)
        from_labels = step("finetune", tuning).outputs["out"]
    return Tuned(interpreter, labels, from_features, from_labels)
