"""What has arrived since the champion was trained: looked at, learnt from, and promoted if it made the model no worse."""

from collections.abc import Callable

from kfp import dsl
from kfp.dsl import Collected, Else, ExitHandler, If

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
from components.nothing_new import nothing_new
from components.promote import promote
from components.publish import publish
from components.train_teacher import train_teacher
from pipelines.chain import Step, fine_tune


def build(step: Step, parallelism: int = 0, *, git_url: str = "", data_rev: str = "") -> Callable:
    """The pipeline.

    Args:
        step: gives each task, by its step's name, what it needs where it runs.
        parallelism: passes of a loop at once, 0: all.
        git_url: default of the parameter of that name.
        data_rev: default of the parameter of that name.
    """

    @dsl.pipeline(name="dreamteacher-retrain")
    def retrain(git_url: str = git_url, data_rev: str = data_rev, settings: list[str] = []):  # noqa: B006
        """Train on from the champion with what has arrived at retrain.incoming; promote the result if it passes the gates.

        Args:
            git_url: repository of the project; or a folder that all steps see, with an empty data_rev.
            data_rev: commit, tag or branch of it, which names settings and labelled pictures.
            settings: what differs from params.yaml of that revision, as ["retrain.incoming=s3://bucket/incoming", ...].
        """
        with ExitHandler(step("finish", finish())):
            resolving = find_commit(git_url=git_url, data_rev=data_rev, settings=settings, pipeline="retrain")
            found = step("find-commit", resolving).outputs
            fetching = fetch_data(git_url=git_url, data_version=found["data_version"], source=found["source"])
            pictures = step("fetch-data", fetching).outputs["pictures"]
            champion = step("fetch-champion", fetch_champion(settings=found["publish"])).outputs["champion"]
            data = step("ingest-incoming", ingest(pictures=pictures, settings=found["ingest_incoming"])).outputs["out"]
            new = step("compare-data", compare_data(data=data, champion=champion, settings=found["compare_data"])).outputs
            with If(new["enough"] == True, name="enough-is-new"):  # noqa: E712
                training = train_teacher(data=data, champion=champion, settings=found["train_teacher"])
                teacher = step("train-teacher", training).outputs["out"]
                distilling = distill_features(data=data, teacher=teacher, champion=champion, settings=found["distill_features"])
                features = step("distill-features", distilling).outputs["out"]
                tuned = fine_tune(step, found, data=data, teacher=teacher, features=features, parallelism=parallelism)

                def models() -> dict[str, Collected]:
                    """KFP's compiler alters each Collected that it meets, so every step gets its own."""
                    return {"distilled": Collected(tuned.from_features), "mixed": Collected(tuned.from_labels)}

                comparing = evaluate(data=data, teacher=teacher, features=features, settings=found["evaluate"], **models())
                evaluation = step("evaluate", comparing).outputs["out"]
                onnx = step("export-onnx", export_onnx(data=data, settings=found["export_onnx"], **models())).outputs["out"]
                made = {"data": data, "teacher": teacher, "features": features, "evaluation": evaluation, "onnx": onnx}
                registered = step("publish", publish(settings=found["publish"], **made))
                judging = gate(data=data, onnx=onnx, evaluation=evaluation, champion=champion, settings=found["gate"])
                verdict = step("gate", judging).outputs["out"]
                step("promote", promote(verdict=verdict, onnx=onnx, settings=found["publish"]).after(registered))
            with Else(name="too-little-is-new"):
                step("nothing-new", nothing_new(words=new["words"]))

    return retrain
