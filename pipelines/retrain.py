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


def build(step: Step, parallelism: int = 0) -> Callable:
    """The pipeline; `step` gives each task, by its step's name, what it needs there; `parallelism` passes of a loop at once, 0: all."""

    @dsl.pipeline(name="dreamteacher-retrain")
    def retrain(
        data_rev: str,
        git_url: str = "",
        project: str = ".",
        settings: list[str] = [],  # noqa: B006
        seeds: list[int] = [0, 1, 2],  # noqa: B006
        modes: list[str] = ["mix"],  # noqa: B006
    ):
        """Train on from the champion with what has arrived at retrain.incoming; promote the result if it passes the gates.

        Args:
            data_rev: revision of the project (commit, tag or branch) that names settings and labelled pictures; of a folder, a word of
                yours: give another when they change, for the cache looks at the word alone.
            git_url: repository of the project; empty: the folder `project`.
            project: folder of the project that the steps can see, where git_url is empty.
            settings: what differs from params.yaml of that revision, as ["retrain.incoming=s3://bucket/incoming", ...].
            seeds: each draws its own few labels and random weights; their spread says which loss is one.
            modes: label distillations, of labels and mix; the exported initialisation must be one of them, or features.
        """
        with ExitHandler(step("finish", finish())):
            commit = step("find-commit", find_commit(git_url=git_url, data_rev=data_rev)).output
            fetched = step(
                "fetch-data",
                fetch_data(project=project, git_url=git_url, data_rev=commit, settings=settings, seeds=seeds, fresh=[], modes=modes),
            ).outputs
            seed_, few_labels, taps, student = fetched["seed"], fetched["few_labels"], fetched["taps"], fetched["student"]
            champion = step("fetch-champion", fetch_champion(publish=fetched["publish"])).outputs["champion"]
            data = step("ingest-incoming", ingest(source=fetched["source"], ingest=fetched["ingest"], retrain=fetched["retrain"])).outputs[
                "out"
            ]
            new = step(
                "compare-data", compare_data(data=data, champion=champion, distill=fetched["distill"], retrain=fetched["retrain"])
            ).outputs
            with If(new["enough"] == True, name="enough-is-new"):  # noqa: E712
                teacher = step(
                    "train-teacher", train_teacher(data=data, champion=champion, seed=seed_, teacher=fetched["teacher"])
                ).outputs["out"]
                features = step(
                    "distill-features",
                    distill_features(
                        data=data,
                        teacher=teacher,
                        champion=champion,
                        seed=seed_,
                        taps=taps,
                        student=student,
                        distill=fetched["distill"],
                    ),
                ).outputs["out"]
                tuned = fine_tune(
                    step, fetched, data=data, teacher=teacher, features=features, seeds=seeds, modes=modes, parallelism=parallelism
                )
                evaluation = step(
                    "evaluate",
                    evaluate(
                        data=data,
                        teacher=teacher,
                        features=features,
                        few_labels=few_labels,
                        compare=fetched["compare"],
                        evaluate=fetched["evaluate"],
                        distilled=Collected(tuned.from_features),
                        mixed=Collected(tuned.from_labels),
                    ),
                ).outputs["out"]
                onnx = step(
                    "export-onnx",
                    export_onnx(
                        data=data, export=fetched["export"], distilled=Collected(tuned.from_features), mixed=Collected(tuned.from_labels)
                    ),
                ).outputs["out"]
                made = {"data": data, "teacher": teacher, "features": features, "evaluation": evaluation, "onnx": onnx}
                registered = step("publish", publish(publish=fetched["publish"], **made))
                verdict = step(
                    "gate",
                    gate(
                        data=data, onnx=onnx, evaluation=evaluation, champion=champion, export=fetched["export"], retrain=fetched["retrain"]
                    ),
                ).outputs["out"]
                step("promote", promote(verdict=verdict, onnx=onnx, publish=fetched["publish"]).after(registered))
            with Else(name="too-little-is-new"):
                step("nothing-new", nothing_new(words=new["words"]))

    return retrain
