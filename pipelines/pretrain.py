"""The chain of dvc.yaml on a cluster: from the pictures of a data version to a registered model, recorded by DVC."""

from collections.abc import Callable
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Collected, Dataset, ExitHandler, Input, Model, ParallelFor

from components.evaluate import evaluate
from components.export_onnx import export_onnx
from components.fetch_data import fetch_data
from components.find_commit import find_commit
from components.finetune import finetune
from components.finish import finish
from components.ingest import ingest
from components.publish import publish
from components.record import record
from components.report import report
from pipelines.chain import LOOPS, STAGES, Step, pretrain_and_fine_tune

# Outputs of prepare: artifacts, and parameters that depend on the revision.
RESOLVED: dict[str, type] = {"commit": str, "teacher": str, "recipe": str, "fresh": list, **LOOPS, **dict.fromkeys(STAGES, dict)}
Prepared = NamedTuple("Prepared", [("data", Dataset), *RESOLVED.items()])  # type: ignore[misc]


class Trained(NamedTuple):
    """Outputs of the group train, the lists of all teachers and recipes."""

    evaluation: Model
    onnx: Model
    fresh: list[Model]
    teachers: list[Model]
    backbones: list[Model]
    distilled: list[Model]
    mixed: list[Model]
    interpreters: list[Model]
    labels: list[Model]


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

    @dsl.pipeline(name="train")
    def train(
        data: Input[Dataset],
        fresh: list,
        teachers: list,
        recipes: dict,
        passes: dict,
        teacher_settings: dict,
        distill_settings: dict,
        interpreter_settings: dict,
        labels_settings: dict,
        finetune_settings: dict,
        evaluate_settings: dict,
        export_settings: dict,
    ) -> Trained:
        """Pretrain, fine-tune from all recipes and from scratch or ImageNet weights, evaluate all models, and export one to ONNX."""
        made = pretrain_and_fine_tune(
            step,
            data=data,
            teachers=teachers,
            recipes=recipes,
            passes=passes,
            teacher_settings=teacher_settings,
            distill_settings=distill_settings,
            interpreter_settings=interpreter_settings,
            labels_settings=labels_settings,
            finetune_settings=finetune_settings,
            parallelism=parallelism,
        )
        with ParallelFor(fresh, name="fine-tune-baselines", parallelism=parallelism) as item:
            baseline = finetune(data=data, init=item.init, seed=item.seed, settings=finetune_settings, changes={})
            from_fresh = step("finetune", baseline).outputs["out"]

        def tuned() -> dict[str, Collected]:
            return {"fresh": Collected(from_fresh), "distilled": made().distilled, "mixed": made().mixed}

        comparing = evaluate(data=data, teachers=made().teachers, backbones=made().backbones, settings=evaluate_settings, **tuned())
        evaluation = step("evaluate", comparing).outputs["out"]
        onnx = step("export-onnx", export_onnx(data=data, settings=export_settings, **tuned())).outputs["out"]
        return Trained(evaluation, onnx, Collected(from_fresh), *made())

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
            made = train(
                data=data,
                **{name: found[name] for name in ("fresh", *LOOPS)},
                teacher_settings=found["train_teacher"],
                distill_settings=found["distill_features"],
                interpreter_settings=found["train_interpreter"],
                labels_settings=found["distill_labels"],
                finetune_settings=found["finetune"],
                evaluate_settings=found["evaluate"],
                export_settings=found["export_onnx"],
            ).outputs
            onnx, compared = made["onnx"], {"data": data, **{name: made[name] for name in Trained._fields if name != "onnx"}}
            pretrained = {name: compared[name] for name in ("data", "teachers", "backbones", "evaluation")}
            publishing = publish(teacher=found["teacher"], backbone=found["recipe"], settings=found["publish"], onnx=onnx, **pretrained)
            triton = step("publish", publishing).outputs["out"]
            written = step("report", report(settings=found["report"], **compared)).outputs["out"]
            run = {"git_url": git_url, "commit": found["commit"], "overrides": settings, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
            step("record", record(**run, onnx=onnx, triton=triton, report=written, **compared))

    return chain
