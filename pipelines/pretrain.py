"""The chain of dvc.yaml on a cluster: from the pictures of a data version to a registered model, recorded by DVC."""

from collections.abc import Callable
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Collected, Dataset, ExitHandler, Input, Model, ParallelFor

from components.distill_features import distill_features
from components.evaluate import evaluate
from components.export_onnx import export_onnx
from components.fetch_data import fetch_data
from components.find_commit import find_commit
from components.finetune import finetune
from components.finish import finish
from components.ingest import ingest
from components.list_passes import list_passes
from components.list_recipes import list_recipes
from components.publish import publish
from components.record import record
from components.report import report
from components.train_teacher import train_teacher
from pipelines.chain import STAGES, Step, fine_tune

# Outputs of prepare: artifacts, and parameters that depend on the revision.
RESOLVED: dict[str, type] = {
    "commit": str,
    "teacher": str,
    "recipe": str,
    "fresh": list,
    "teachers": list,
    "recipes": dict,
    "passes": dict,
    **dict.fromkeys(STAGES, dict),
}
Prepared = NamedTuple("Prepared", [("data", Dataset), *RESOLVED.items()])  # type: ignore[misc]


class Pretrained(NamedTuple):
    """Outputs of the group pretrain, of all teachers and recipes."""

    teachers: list[Model]
    backbones: list[Model]
    distilled: list[Model]
    mixed: list[Model]
    interpreters: list[Model]
    labels: list[Model]


class Compared(NamedTuple):
    """Outputs of the group compare."""

    evaluation: Model
    fresh: list[Model]


def build(step: Step, parallelism: int = 0, *, git_url: str = "", data_rev: str = "") -> Callable:
    """The pipeline.

    Args:
        step: sets resources and environment of each task, by its step's name.
        parallelism: parallel loop iterations; 0: all.
        git_url: default of the parameter of that name.
        data_rev: default of the parameter of that name.
    """

    @dsl.pipeline(name="prepare")
    def prepare(git_url: str, data_rev: str, settings: list) -> Prepared:
        """Resolve the settings of a revision and ingest its pictures as one data set."""
        resolving = find_commit(git_url=git_url, data_rev=data_rev, settings=settings, pipeline="pretrain")
        found = step("find-commit", resolving).outputs
        fetching = fetch_data(git_url=git_url, data_version=found["data_version"], source=found["source"])
        pictures = step("fetch-data", fetching).outputs["pictures"]
        data = step("ingest", ingest(pictures=pictures, settings=found["ingest"])).outputs["out"]
        return Prepared(data, **{name: found[name] for name in RESOLVED})  # type: ignore[call-arg]

    @dsl.pipeline(name="pretrain")
    def pretrain(
        data: Input[Dataset],
        teachers: list,
        recipes: dict,
        passes: dict,
        teacher_settings: dict,
        distill_settings: dict,
        interpreter_settings: dict,
        labels_settings: dict,
        finetune_settings: dict,
    ) -> Pretrained:
        """For each teacher its recipes, and for each recipe the fine-tunings from it.

        The loops are nested because a KFP loop iteration can use outputs of its own or outer levels, but cannot select from a list by name;
        a whole list as input would change, and invalidate the cache of all that reads it, with every additional teacher.
        """
        with ParallelFor(teachers, name="teachers", parallelism=parallelism) as item:
            training = train_teacher(data=data, name=item.teacher, settings=teacher_settings, changes=item.changes)
            teacher = step("train-teacher", training).outputs["out"]
            learning = step("list-recipes", list_recipes(recipes=recipes, teacher=item.teacher)).output
            with ParallelFor(learning, name="recipes", parallelism=parallelism) as one:
                own = {"recipe": one.recipe, "settings": distill_settings, "changes": one.distill}
                features = step("distill-features", distill_features(data=data, teacher=teacher, **own)).outputs["out"]
                listed = step("list-passes", list_passes(passes=passes, recipe=one.recipe)).outputs
                tuned = fine_tune(
                    step,
                    data=data,
                    teacher=teacher,
                    features=features,
                    recipe=one.recipe,
                    mixed=listed["mixed"],
                    seeds=listed["seeds"],
                    interpreter_settings=interpreter_settings,
                    labels_settings=labels_settings,
                    finetune_settings=finetune_settings,
                    changes=one.finetune,
                    parallelism=parallelism,
                )
        made = (teacher, features, tuned.from_features, tuned.from_labels, tuned.interpreters, tuned.labels)
        return Pretrained(*map(Collected, made))

    @dsl.pipeline(name="compare")
    def compare(
        data: Input[Dataset],
        teachers: Input[list[Model]],
        backbones: Input[list[Model]],
        distilled: Input[list[Model]],
        mixed: Input[list[Model]],
        fresh: list,
        finetune_settings: dict,
        evaluate_settings: dict,
    ) -> Compared:
        """Fine-tune the baselines (scratch, imagenet), and evaluate all models."""
        with ParallelFor(fresh, name="fine-tune-baselines", parallelism=parallelism) as item:
            baseline = finetune(data=data, init=item.init, seed=item.seed, settings=finetune_settings, changes={})
            from_fresh = step("finetune", baseline).outputs["out"]
        made = {"teachers": teachers, "backbones": backbones, "distilled": distilled, "mixed": mixed, "fresh": Collected(from_fresh)}
        evaluation = step("evaluate", evaluate(data=data, settings=evaluate_settings, **made)).outputs["out"]
        return Compared(evaluation, Collected(from_fresh))  # KFP's compiler modifies each Collected, so every use gets its own

    @dsl.pipeline(name="deliver")
    def deliver(
        git_url: str,
        commit: str,
        overrides: list,
        teacher: str,
        recipe: str,
        export_settings: dict,
        publish_settings: dict,
        report_settings: dict,
        data: Input[Dataset],
        teachers: Input[list[Model]],
        backbones: Input[list[Model]],
        evaluation: Input[Model],
        fresh: Input[list[Model]],
        distilled: Input[list[Model]],
        mixed: Input[list[Model]],
        interpreters: Input[list[Model]],
        labels: Input[list[Model]],
    ):
        """Export the chosen model to ONNX, publish it, write a report, and push all outputs to DVC."""
        models = {"fresh": fresh, "distilled": distilled, "mixed": mixed}
        onnx = step("export-onnx", export_onnx(data=data, settings=export_settings, **models)).outputs["out"]
        made = {"data": data, "teachers": teachers, "backbones": backbones, "evaluation": evaluation, "onnx": onnx}
        publishing = publish(teacher=teacher, backbone=recipe, settings=publish_settings, **made)
        triton = step("publish", publishing).outputs["out"]
        compared = {"data": data, "teachers": teachers, "backbones": backbones, "evaluation": evaluation}
        compared |= {**models, "interpreters": interpreters, "labels": labels}
        written = step("report", report(settings=report_settings, **compared)).outputs["out"]
        run = {"git_url": git_url, "commit": commit, "overrides": overrides, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
        step("record", record(**run, onnx=onnx, triton=triton, report=written, **compared))

    @dsl.pipeline(name="dreamteacher-pretrain")
    def chain(git_url: str = git_url, data_rev: str = data_rev, settings: list[str] = []):  # noqa: B006
        """Pretrain a backbone on unlabelled pictures, fine-tune it, compare with training from scratch, export, publish.

        Args:
            git_url: repository of the project, or a folder that all steps can read, with an empty data_rev.
            data_rev: commit, tag or branch with the settings and pictures.
            settings: overrides of that revision's params.yaml, as ["distill.T=150", "compare.seeds=[0]"].
        """
        with ExitHandler(step("finish", finish(pipeline="pretrain")), name="chain"):
            found = prepare(git_url=git_url, data_rev=data_rev, settings=settings).outputs
            data = found["data"]
            made = pretrain(
                data=data,
                teachers=found["teachers"],
                recipes=found["recipes"],
                passes=found["passes"],
                teacher_settings=found["train_teacher"],
                distill_settings=found["distill_features"],
                interpreter_settings=found["train_interpreter"],
                labels_settings=found["distill_labels"],
                finetune_settings=found["finetune"],
            ).outputs
            compared = compare(
                data=data,
                **{name: made[name] for name in ("teachers", "backbones", "distilled", "mixed")},
                fresh=found["fresh"],
                finetune_settings=found["finetune"],
                evaluate_settings=found["evaluate"],
            ).outputs
            run = {"git_url": git_url, "commit": found["commit"], "overrides": settings}
            run |= {"teacher": found["teacher"], "recipe": found["recipe"]}
            deliver(
                **run,
                export_settings=found["export_onnx"],
                publish_settings=found["publish"],
                report_settings=found["report"],
                data=data,
                **made,
                **compared,
            )

    return chain
