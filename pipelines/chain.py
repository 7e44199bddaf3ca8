"""What both pipelines do with a pretrained backbone: the few labels, through the interpreter or at once, to fine-tuned models."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kfp.dsl import ParallelFor, PipelineTask

from components.combine import combine
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


def fine_tune(
    step: Step, fetched: Mapping[str, Any], *, data: Any, teacher: Any, features: Any, seeds: Any, modes: Any, parallelism: int
) -> Tuned:
    """Fine-tune from `features` for all `seeds`, and from label distillation for all `modes` and `seeds`.

    Args:
        step: gives each task what it needs there.
        fetched: outputs of fetch_data, the settings.
        data: the data set.
        teacher: the generator.
        features: the feature-distilled backbone.
        seeds: parameter of the pipeline.
        modes: parameter of the pipeline.
        parallelism: passes of a loop at once, 0: all.
    """
    task = finetune_inputs(fetched, data)
    with ParallelFor(seeds, parallelism=parallelism) as seed:
        from_features = step("finetune", finetune(init="features", seed=seed, backbone=features, **task)).outputs["out"]
    with ParallelFor(step("combine", combine(inits=modes, seeds=seeds)).output, parallelism=parallelism) as item:
        given = {"data": data, "teacher": teacher, "seed": item.seed, "taps": fetched["taps"]}
        reading = train_interpreter(**given, few_labels=fetched["few_labels"], interpreter=fetched["interpreter"])
        interpreter = step("train-interpreter", reading).outputs["out"]
        distilling = distill_labels(
            **given,
            features=features,
            interpreter=interpreter,
            mode=item.init,
            **{group: fetched[group] for group in ("student", "distill", "labels")},
        )
        labels = step("distill-labels", distilling).outputs["out"]
        from_labels = step("finetune", finetune(init=item.init, seed=item.seed, backbone=labels, **task)).outputs["out"]
    return Tuned(interpreter, labels, from_features, from_labels)


def finetune_inputs(fetched: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """What every fine-tuning is given, whatever it starts from."""
    return {"data": data} | {group: fetched[group] for group in ("few_labels", "student", "finetune")}
