"""The whole chain of dvc.yaml on a cluster: pictures of a data version in, a registered model out, recorded by DVC."""

from collections.abc import Callable

from kfp import dsl
from kfp.dsl import Collected, ExitHandler, ParallelFor

from components.distill_features import distill_features
from components.evaluate import evaluate
from components.export_onnx import export_onnx
from components.fetch_data import fetch_data
from components.find_commit import find_commit
from components.finetune import finetune
from components.finish import finish
from components.ingest import ingest
from components.publish import publish
from components.record import record
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

    @dsl.pipeline(name="dreamteacher-pretrain")
    def pretrain(git_url: str = git_url, data_rev: str = data_rev, settings: list[str] = []):  # noqa: B006
        """Pretrain a backbone on unlabelled pictures, fine-tune it, compare with training from scratch, export, publish.

        Args:
            git_url: repository of the project; or a folder that all steps see, with an empty data_rev.
            data_rev: commit, tag or branch of it, which names settings and pictures.
            settings: what differs from params.yaml of that revision, as ["distill.T=150", "compare.seeds=[0]"].
        """
        with ExitHandler(step("finish", finish())):
            resolving = find_commit(git_url=git_url, data_rev=data_rev, settings=settings, pipeline="pretrain")
            found = step("find-commit", resolving).outputs
            fetching = fetch_data(git_url=git_url, data_version=found["data_version"], source=found["source"])
            pictures = step("fetch-data", fetching).outputs["pictures"]
            data = step("ingest", ingest(pictures=pictures, settings=found["ingest"])).outputs["out"]
            teacher = step("train-teacher", train_teacher(data=data, settings=found["train_teacher"])).outputs["out"]
            distilling = distill_features(data=data, teacher=teacher, settings=found["distill_features"])
            features = step("distill-features", distilling).outputs["out"]
            with ParallelFor(found["fresh"], parallelism=parallelism) as item:
                tuning = finetune(data=data, init=item.init, seed=item.seed, settings=found["finetune"])
                from_fresh = step("finetune", tuning).outputs["out"]
            tuned = fine_tune(step, found, data=data, teacher=teacher, features=features, parallelism=parallelism)

            def models() -> dict[str, Collected]:
                """KFP's compiler alters each Collected that it meets, so every step gets its own."""
                return {"fresh": Collected(from_fresh), "distilled": Collected(tuned.from_features), "mixed": Collected(tuned.from_labels)}

            comparing = evaluate(data=data, teacher=teacher, features=features, settings=found["evaluate"], **models())
            evaluation = step("evaluate", comparing).outputs["out"]
            onnx = step("export-onnx", export_onnx(data=data, settings=found["export_onnx"], **models())).outputs["out"]
            made = {"data": data, "teacher": teacher, "features": features, "evaluation": evaluation, "onnx": onnx}
            triton = step("publish", publish(settings=found["publish"], **made)).outputs["out"]
            step(
                "record",
                record(
                    git_url=git_url,
                    commit=found["commit"],
                    overrides=settings,
                    run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
                    interpreters=Collected(tuned.interpreters),
                    labels=Collected(tuned.labels),
                    triton=triton,
                    **made,
                    **models(),
                ),
            )

    return pretrain
