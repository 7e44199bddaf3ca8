"""The whole chain of dvc.yaml on a cluster: pictures of a data version in, a registered model out, recorded by DVC."""

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

# What leaves prepare: artifacts, and what else depends on the revision.
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
    """What leaves the group pretrain, of all teachers and recipes."""

    teachers: list[Model]
    backbones: list[Model]
    distilled: list[Model]
    mixed: list[Model]
    interpreters: list[Model]
    labels: list[Model]


class Compared(NamedTuple):
    """What leaves the group compare."""

    evaluation: Model
    fresh: list[Model]


def build(step: Step, parallelism: int = 0, *, git_url: str = "", data_rev: str = "") -> Callable:
    """The pipeline.

    Args:
        step: gives each task, by its step's name, what it needs where it runs.
        parallelism: passes of a loop at once, 0: all.
        git_url: default of the parameter of that name.
        data_rev: default of the parameter of that name.
    """

    @dsl.pipeline(name="prepare")
    def prepare(git_url: str, data_rev: str, settings: list) -> Prepared:
        """Resolve the settings of a revision; its pictures, checked, as one data set."""
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
        """Each teacher, of each the recipes that learn from it, and of each recipe what is fine-tuned from it.

        The loops lie within each other because KFP can hand a pass the output of a step beside or above it, and none of a list by name: a
        list as a whole would change, and with it all that reads it, by one teacher more.
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
        """Models fine-tuned without pretraining of ours, and the figures of all."""
        with ParallelFor(fresh, name="fine-tune-baselines", parallelism=parallelism) as item:
            baseline = finetune(data=data, init=item.init, seed=item.seed, settings=finetune_settings, changes={})
            from_fresh = step("finetune", baseline).outputs["out"]
        made = {"teachers": teachers, "backbones": backbones, "distilled": distilled, "mixed": mixed, "fresh": Collected(from_fresh)}
        evaluation = step("evaluate", evaluate(data=data, settings=evaluate_settings, **made)).outputs["out"]
        return Compared(evaluation, Collected(from_fresh))  # KFP's compiler alters each Collected that it meets, so every use gets its own

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
        """The best model as ONNX, to the registry and to Triton's repositories; a report; and all outputs to DVC."""
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
            git_url: repository of the project; or a folder that all steps see, with an empty data_rev.
            data_rev: commit, tag or branch of it, which names settings and pictures.
            settings: what differs from params.yaml of that revision, as ["distill.T=150", "compare.seeds=[0]"].
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
