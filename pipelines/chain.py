"""Shared by both pipelines: from pictures to teachers, backbones and fine-tuned models, for each teacher its recipes."""

from collections.abc import Callable
from typing import Any, NamedTuple

from kfp.dsl import Collected, Model, ParallelFor, PipelineTask

from components.distill_features import distill_features
from components.distill_labels import distill_labels
from components.finetune import finetune
from components.list_passes import list_passes
from components.list_recipes import list_recipes
from components.train_interpreter import train_interpreter
from components.train_teacher import train_teacher

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
# What find-commit resolves for `pretrain_and_fine_tune`: the items of its loops.
LOOPS: dict[str, type] = {"teachers": list, "recipes": dict, "passes": dict}


class Made(NamedTuple):
    """Outputs of `pretrain_and_fine_tune`, of all teachers and recipes."""

    teachers: list[Model]
    backbones: list[Model]
    distilled: list[Model]
    mixed: list[Model]
    interpreters: list[Model]
    labels: list[Model]


def pretrain_and_fine_tune(
    step: Step,
    *,
    data: Any,
    champion: Any = None,
    teachers: Any,
    recipes: Any,
    passes: Any,
    teacher_settings: Any,
    distill_settings: Any,
    interpreter_settings: Any,
    labels_settings: Any,
    finetune_settings: Any,
    parallelism: int,
) -> Callable[[], Made]:
    """For each teacher its recipes, and for each recipe the fine-tunings from it.

    The loops are nested for two reasons. A KFP loop iteration can use outputs of its own or outer levels, but cannot select from a list by
    name; a whole list as input would change, and invalidate the cache of all that reads it, with every additional teacher. And a loop
    without items, such as that over label recipes, can be collected only if it is nested in a loop that has items.

    Args:
        step: sets resources and environment of each task.
        data: the data set.
        champion: output of fetch-champion, from which teacher and backbone continue.
        teachers, recipes, passes: of `Resolved` in find_commit.
        teacher_settings, distill_settings, interpreter_settings, labels_settings, finetune_settings: of the steps.
        parallelism: parallel loop iterations; 0: all.

    Returns:
        a function that returns the outputs. Call it for each use, since KFP's compiler modifies a Collected. Use them only in steps and
        outputs of the same group: of a list that is an input of a group, KFP 2.17 keeps only one artifact.
    """
    warm_start = {} if champion is None else {"champion": champion}
    with ParallelFor(teachers, name="teachers", parallelism=parallelism) as item:
        training = train_teacher(data=data, name=item.teacher, settings=teacher_settings, changes=item.changes, **warm_start)
        teacher = step("train-teacher", training).outputs["out"]
        learning = step("list-recipes", list_recipes(recipes=recipes, teacher=item.teacher)).output
        with ParallelFor(learning, name="recipes", parallelism=parallelism) as one:
            own = {"recipe": one.recipe, "settings": distill_settings, "changes": one.distill}
            distilling = distill_features(data=data, teacher=teacher, **own, **warm_start)
            features = step("distill-features", distilling).outputs["out"]
            listed = step("list-passes", list_passes(passes=passes, recipe=one.recipe)).outputs
            with ParallelFor(listed["seeds"], name="fine-tune-features", parallelism=parallelism) as seed:
                inputs = {"data": data, "init": one.recipe, "seed": seed, "backbone": features}
                tuning = finetune(**inputs, settings=finetune_settings, changes=one.finetune)
                from_features = step("finetune", tuning).outputs["out"]
            with ParallelFor(listed["mixed"], name="distill-and-fine-tune-labels", parallelism=parallelism) as mixed:
                inputs = {"data": data, "teacher": teacher, "recipe": mixed.init, "seed": mixed.seed}
                interpreting = train_interpreter(**inputs, settings=interpreter_settings, changes=mixed.interpreter)
                interpreter = step("train-interpreter", interpreting).outputs["out"]
                inputs |= {"features": features, "interpreter": interpreter}
                labels = step("distill-labels", distill_labels(**inputs, settings=labels_settings, changes=mixed.labels)).outputs["out"]
                inputs = {"data": data, "init": mixed.init, "seed": mixed.seed, "backbone": labels}
                tuning = finetune(**inputs, settings=finetune_settings, changes=mixed.finetune)
                from_labels = step("finetune", tuning).outputs["out"]
    return lambda: Made(*map(Collected, (teacher, features, from_features, from_labels, interpreter, labels)))
