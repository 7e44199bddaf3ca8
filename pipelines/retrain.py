"""Retraining: ingest pictures that arrived since the champion was trained, train on, and promote the result if it passes the gates."""

from collections.abc import Callable
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Dataset, ExitHandler, If, Input, Model

from components.compare_data import compare_data
from components.evaluate import evaluate
from components.export_onnx import export_onnx
from components.fetch_champion import fetch_champion
from components.fetch_data import fetch_data
from components.find_commit import find_commit
from components.finish import finish
from components.gate import gate
from components.ingest import ingest
from components.promote import promote
from components.publish import publish
from components.report import report
from pipelines.chain import LOOPS, STAGES, Step, pretrain_and_fine_tune

# Outputs of prepare: parameters that find-commit resolves, and what the other steps produce.
RESOLVED: dict[str, type] = {"teacher": str, "recipe": str, **LOOPS, **dict.fromkeys([*STAGES, "gate"], dict)}
PRODUCED: dict[str, type] = {"data": Dataset, "champion": Model, "drift": Artifact, "enough": bool}
Prepared = NamedTuple("Prepared", [*PRODUCED.items(), *RESOLVED.items()])  # type: ignore[misc]


class Trained(NamedTuple):
    """Outputs of the group train; each list of teachers or backbones has one."""

    evaluation: Model
    onnx: Model
    verdict: Artifact
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
        """Resolve the settings of a revision, ingest its pictures and new ones, and compare these with the champion's data."""
        resolving = find_commit(git_url=git_url, data_rev=data_rev, settings=settings, pipeline="retrain")
        found = step("find-commit", resolving).outputs
        fetching = fetch_data(git_url=git_url, data_version=found["data_version"], source=found["source"])
        pictures = step("fetch-data", fetching).outputs["pictures"]
        champion = step("fetch-champion", fetch_champion(settings=found["publish"])).outputs["champion"]
        data = step("ingest-incoming", ingest(pictures=pictures, settings=found["ingest_incoming"])).outputs["out"]
        new = step("compare-data", compare_data(data=data, champion=champion, settings=found["compare_data"])).outputs
        return Prepared(data, champion, new["out"], new["enough"], **{name: found[name] for name in RESOLVED})  # type: ignore[call-arg]

    @dsl.pipeline(name="train")
    def train(
        data: Input[Dataset],
        champion: Input[Model],
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
        gate_settings: dict,
    ) -> Trained:
        """Continue training the champion's teacher and backbone, fine-tune, evaluate, export one model to ONNX, and check the gates."""
        made = pretrain_and_fine_tune(
            step,
            data=data,
            champion=champion,
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

        def tuned() -> dict[str, Any]:
            return {"distilled": made().distilled, "mixed": made().mixed}

        comparing = evaluate(data=data, teachers=made().teachers, backbones=made().backbones, settings=evaluate_settings, **tuned())
        evaluation = step("evaluate", comparing).outputs["out"]
        onnx = step("export-onnx", export_onnx(data=data, settings=export_settings, **tuned())).outputs["out"]
        judging = gate(data=data, onnx=onnx, evaluation=evaluation, champion=champion, settings=gate_settings)
        return Trained(evaluation, onnx, step("gate", judging).outputs["out"], *made())

    @dsl.pipeline(name="dreamteacher-retrain")
    def chain(git_url: str = git_url, data_rev: str = data_rev, settings: list[str] = []):  # noqa: B006
        """Continue training from the champion with the pictures at retrain.incoming; promote the result if it passes the gates.

        Args:
            git_url: repository of the project, or a folder that all steps can read, with an empty data_rev.
            data_rev: commit, tag or branch with the settings and labelled pictures.
            settings: overrides of that revision's params.yaml, as ["retrain.incoming=s3://bucket/incoming", ...].
        """
        with ExitHandler(step("finish", finish(pipeline="retrain")), name="chain"):
            found = prepare(git_url=git_url, data_rev=data_rev, settings=settings).outputs
            data, champion = found["data"], found["champion"]
            with If(found["enough"] == True, name="enough-is-new"):  # noqa: E712
                made = train(
                    data=data,
                    champion=champion,
                    **{name: found[name] for name in LOOPS},
                    teacher_settings=found["train_teacher"],
                    distill_settings=found["distill_features"],
                    interpreter_settings=found["train_interpreter"],
                    labels_settings=found["distill_labels"],
                    finetune_settings=found["finetune"],
                    evaluate_settings=found["evaluate"],
                    export_settings=found["export_onnx"],
                    gate_settings=found["gate"],
                ).outputs
                onnx, verdict = made["onnx"], made["verdict"]
                compared = {"data": data, **{name: made[name] for name in Trained._fields if name not in ("onnx", "verdict")}}
                pretrained = {name: compared[name] for name in ("data", "teachers", "backbones", "evaluation")}
                publishing = publish(teacher=found["teacher"], backbone=found["recipe"], settings=found["publish"], onnx=onnx, **pretrained)
                registered = step("publish", publishing)
                step("promote", promote(verdict=verdict, onnx=onnx, settings=found["publish"]).after(registered))
                step("report", report(settings=found["report"], drift=found["drift"], verdict=verdict, **compared))

    return chain
