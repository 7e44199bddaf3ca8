"""Make the new model champion, or write down why not."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    verdict: Input[Artifact],
    onnx: Input[Model],
    data: Input[Dataset],
    teacher: Input[Model],
    features: Input[Model],
    evaluation: Input[Model],
    publish: dict,
) -> NamedTuple("Outcome", [("promoted", bool), ("version", str), ("reason", str)]):
    """Make the new model champion, or write down why not; store what it was made from beside its version.

    Args:
        verdict: output of gate.
        onnx: the exported files, which publish registered.
        data: the data set of ingest.
        teacher: the generator.
        features: the feature-distilled backbone.
        evaluation: the figures of all models.
        publish: settings of the group publish: the model's name.
    """
    from pathlib import Path

    from dreamteacher.params_file import restore_params
    from dreamteacher.stages.promote import run

    made = {"gate": verdict, "onnx": onnx, "data": data, "teacher": teacher, "features": features, "evaluation": evaluation}
    outcome = run(restore_params(publish=publish), **{name: Path(artifact.path) for name, artifact in made.items()})
    print(f"promoted = {str(outcome.promoted).lower()}, version {outcome.version}: {outcome.reason}")
    print(f"champion is version {outcome.served.champion}, previous {outcome.served.previous or 'none'}")
    return outcome.promoted, outcome.version, outcome.reason
