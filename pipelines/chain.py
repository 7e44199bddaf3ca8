"""What both pipelines do with a pretrained backbone: the few labels, through the interpreter or at once, to fine-tuned models."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kfp.dsl import ParallelFor, PipelineTask

from components.distill_labels import distill_labels
from components.finetune import finetune
from components.train_interpreter import train_interpreter

Step = Callable[[str, PipelineTask], PipelineTask]


class Tuned(NamedTuple):
    """Outputs of loops, to be taken by `Collected`: one for each seed, or for each mode and seed."""

    interpreters: Any
    labels: Any
    from_features: Any
    from_labels: Any


def fine_tune(step: Step, found: Mapping[str, Any], *, data: Any, teacher: Any, features: Any, parallelism: int) -> Tuned:
    """Fine-tune from `features` for all seeds, and from label distillation for all modes and seeds.

    Args:
        step: gives each task what it needs where it runs.
        found: outputs of find_commit: what is compared, and the settings of each stage.
        data: the data set.
        teacher: the generator.
        features: the feature-distilled backbone.
        parallelism: passes of a loop at once, 0: all.
    """
    with ParallelFor(found["seeds"], parallelism=parallelism) as seed:
        tuning = finetune(data=data, init="features", seed=seed, backbone=features, settings=found["finetune"])
        from_features = step("finetune", tuning).outputs["out"]
    with ParallelFor(found["mixed"], parallelism=parallelism) as item:
        given = {"data": data, "teacher": teacher, "seed": item.seed}
        interpreter = step("train-interpreter", train_interpreter(**given, settings=found["train_interpreter"])).outputs["out"]
        distilling = distill_labels(**given, features=features, interpreter=interpreter, mode=item.init, settings=found["distill_labels"])
        labels = step("distill-labels", distilling).outputs["out"]
        tuning = finetune(data=data, init=item.init, seed=item.seed, backbone=labels, settings=found["finetune"])
        from_labels = step("finetune", tuning).outputs["out"]
    return Tuned(interpreter, labels, from_features, from_labels)
