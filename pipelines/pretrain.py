"""The whole chain of dvc.yaml on a cluster: pictures of a data version in, a registered model out, recorded by DVC."""

from collections.abc import Callable

from kfp import dsl
from kfp.dsl import Collected, ExitHandler, ParallelFor

from components.combine import combine
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
from pipelines.chain import Step, fine_tune, finetune_inputs


def build(step: Step, parallelism: int = 0) -> Callable:
    """The pipeline; `step` gives each task, by its step's name, what it needs there; `parallelism` passes of a loop at once, 0: all."""

    @dsl.pipeline(name="dreamteacher-pretrain")
    def pretrain(
        data_rev: str,
        git_url: str = "",
        project: str = ".",
        settings: list[str] = [],  # noqa: B006
        seeds: list[int] = [0, 1, 2],  # noqa: B006
        fresh: list[str] = ["scratch"],  # noqa: B006
        modes: list[str] = ["mix"],  # noqa: B006
    ):
        """Pretrain a backbone on unlabelled pictures, fine-tune it, compare with training from scratch, export, publish.

        Args:
            data_rev: revision of the project (commit, tag or branch) that names the data version; of a folder, a word of yours: give
                another when its data or params.yaml change, for the cache looks at the word alone.
            git_url: repository of the project; empty: the folder `project`.
            project: folder of the project that the steps can see, where git_url is empty.
            settings: what differs from params.yaml of that revision, as ["distill.T=150", ...].
            seeds: each draws its own few labels and random weights.
            fresh: initialisations to compare with, of scratch and imagenet; at least one.
            modes: label distillations, of labels and mix; at least one.
        """
        with ExitHandler(step("finish", finish())):
            commit = step("find-commit", find_commit(git_url=git_url, data_rev=data_rev)).output
            fetched = step(
                "fetch-data",
                fetch_data(project=project, git_url=git_url, data_rev=commit, settings=settings, seeds=seeds, fresh=fresh, modes=modes),
            ).outputs
            seed_, few_labels, taps, student = fetched["seed"], fetched["few_labels"], fetched["taps"], fetched["student"]
            data = step("ingest", ingest(source=fetched["source"], ingest=fetched["ingest"])).outputs["out"]
            teacher = step("train-teacher", train_teacher(data=data, seed=seed_, teacher=fetched["teacher"])).outputs["out"]
            features = step(
                "distill-features",
                distill_features(data=data, teacher=teacher, seed=seed_, taps=taps, student=student, distill=fetched["distill"]),
            ).outputs["out"]
            with ParallelFor(step("combine", combine(inits=fresh, seeds=seeds)).output, parallelism=parallelism) as item:
                from_fresh = step("finetune", finetune(init=item.init, seed=item.seed, **finetune_inputs(fetched, data))).outputs["out"]
            tuned = fine_tune(
                step, fetched, data=data, teacher=teacher, features=features, seeds=seeds, modes=modes, parallelism=parallelism
            )

            def models() -> dict[str, Collected]:
                """KFP's compiler alters each Collected that it meets, so every step gets its own."""
                return {"fresh": Collected(from_fresh), "distilled": Collected(tuned.from_features), "mixed": Collected(tuned.from_labels)}

            evaluation = step(
                "evaluate",
                evaluate(
                    data=data,
                    teacher=teacher,
                    features=features,
                    few_labels=few_labels,
                    compare=fetched["compare"],
                    evaluate=fetched["evaluate"],
                    **models(),
                ),
            ).outputs["out"]
            onnx = step("export-onnx", export_onnx(data=data, export=fetched["export"], **models())).outputs["out"]
            made = {"data": data, "teacher": teacher, "features": features, "evaluation": evaluation, "onnx": onnx}
            triton = step("publish", publish(publish=fetched["publish"], **made)).outputs["out"]
            step(
                "record",
                record(
                    git_url=git_url,
                    commit=commit,
                    overrides=fetched["overrides"],
                    run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
                    interpreters=Collected(tuned.interpreters),
                    labels=Collected(tuned.labels),
                    triton=triton,
                    **made,
                    **models(),
                ),
            )

    return pretrain
