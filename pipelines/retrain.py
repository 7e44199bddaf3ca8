"""Retraining: ingest pictures that arrived since the champion was trained, train on, and promote the result if it passes the gates."""

from collections.abc import Callable
from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Collected, Dataset, ExitHandler, If, Input, Model

from components.compare_data import compare_data
from components.distill_features import distill_features
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
from components.train_teacher import train_teacher
from pipelines.chain import STAGES, Step, fine_tune

# Outputs of prepare: artifacts, and parameters that depend on the revision.
RESOLVED: dict[str, type] = {"teacher": str, "recipe": str, "mixed": list, "seeds": list, **dict.fromkeys([*STAGES, "gate"], dict)}
GIVEN: dict[str, type] = {"data": Dataset, "champion": Model, "drift": Artifact, "enough": bool}
Prepared = NamedTuple("Prepared", [*GIVEN.items(), *RESOLVED.items()])  # type: ignore[misc]


class Pretrained(NamedTuple):
    """Outputs of the group pretrain."""

    teacher: Model
    features: Model


class Compared(NamedTuple):
    """Outputs of the group compare."""

    evaluation: Model
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

    @dsl.pipeline(name="pretrain")
    def pretrain(
        data: Input[Dataset], champion: Input[Model], name: str, recipe: str, teacher_settings: dict, distill_settings: dict
    ) -> Pretrained:
        """Continue training the champion's teacher and backbone."""
        training = train_teacher(data=data, name=name, champion=champion, settings=teacher_settings, changes={})
        teacher = step("train-teacher", training).outputs["out"]
        own = {"recipe": recipe, "settings": distill_settings, "changes": {}}
        distilling = distill_features(data=data, teacher=teacher, champion=champion, **own)
        return Pretrained(teacher, step("distill-features", distilling).outputs["out"])

    @dsl.pipeline(name="compare")
    def compare(
        data: Input[Dataset],
        teacher: Input[Model],
        features: Input[Model],
        recipe: str,
        mixed: list,
        seeds: list,
        interpreter_settings: dict,
        labels_settings: dict,
        finetune_settings: dict,
        evaluate_settings: dict,
    ) -> Compared:
        """Fine-tune from both distillations with all seeds, and evaluate."""
        tuned = fine_tune(
            step,
            data=data,
            teacher=teacher,
            features=features,
            recipe=recipe,
            mixed=mixed,
            seeds=seeds,
            interpreter_settings=interpreter_settings,
            labels_settings=labels_settings,
            finetune_settings=finetune_settings,
            changes={},
            parallelism=parallelism,
        )

        def models() -> dict[str, Collected]:
            """A new Collected for each use, since KFP's compiler modifies it."""
            return {"distilled": Collected(tuned.from_features), "mixed": Collected(tuned.from_labels)}

        comparing = evaluate(data=data, teacher=teacher, features=features, settings=evaluate_settings, **models())
        evaluation = step("evaluate", comparing).outputs["out"]
        return Compared(evaluation, **models(), interpreters=Collected(tuned.interpreters), labels=Collected(tuned.labels))

    @dsl.pipeline(name="deliver")
    def deliver(
        export_settings: dict,
        publish_settings: dict,
        gate_settings: dict,
        report_settings: dict,
        data: Input[Dataset],
        champion: Input[Model],
        name: str,
        recipe: str,
        teacher: Input[Model],
        features: Input[Model],
        evaluation: Input[Model],
        distilled: Input[list[Model]],
        mixed: Input[list[Model]],
        interpreters: Input[list[Model]],
        labels: Input[list[Model]],
        drift: Input[Artifact],
    ):
        """Export the chosen model to ONNX, publish it, promote it if it passes the gates, and write a report."""
        exporting = export_onnx(data=data, settings=export_settings, distilled=distilled, mixed=mixed)
        onnx = step("export-onnx", exporting).outputs["out"]
        made = {"data": data, "generator": teacher, "features": features, "evaluation": evaluation, "onnx": onnx}
        registered = step("publish", publish(teacher=name, backbone=recipe, settings=publish_settings, **made))
        judging = gate(data=data, onnx=onnx, evaluation=evaluation, champion=champion, settings=gate_settings)
        verdict = step("gate", judging).outputs["out"]
        step("promote", promote(verdict=verdict, onnx=onnx, settings=publish_settings).after(registered))
        compared = {"evaluation": evaluation, "distilled": distilled, "mixed": mixed, "interpreters": interpreters, "labels": labels}
        pretrained = {"data": data, "teacher": teacher, "features": features}
        step("report", report(settings=report_settings, drift=drift, verdict=verdict, **pretrained, **compared))

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
                names = {"name": found["teacher"], "recipe": found["recipe"]}
                settings_of = {"teacher_settings": found["train_teacher"], "distill_settings": found["distill_features"]}
                made = pretrain(data=data, champion=champion, **names, **settings_of).outputs
                compared = compare(
                    data=data,
                    **made,
                    recipe=found["recipe"],
                    mixed=found["mixed"],
                    seeds=found["seeds"],
                    interpreter_settings=found["train_interpreter"],
                    labels_settings=found["distill_labels"],
                    finetune_settings=found["finetune"],
                    evaluate_settings=found["evaluate"],
                ).outputs
                deliver(
                    export_settings=found["export_onnx"],
                    publish_settings=found["publish"],
                    gate_settings=found["gate"],
                    report_settings=found["report"],
                    drift=found["drift"],
                    data=data,
                    champion=champion,
                    **names,
                    **made,
                    **compared,
                )

    return chain
