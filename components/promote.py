"""Promote the new model to champion, or record why not."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    verdict: Input[Artifact],
    onnx: Input[Model],
    settings: dict,
    page: Output[HTML],
) -> NamedTuple("Outcome", [("promoted", bool), ("version", str), ("reason", str)]):
    """Promote the new model to champion, or record why not.

    Args:
        verdict: output of gate, which names the champion that it compared with; if that is no longer champion, nothing is promoted.
        onnx: the exported files that publish registered.
        settings: the group publish, for the model's name.
        page: the outcome.
    """
    from pathlib import Path

    from dreamteacher.cluster.launch import remove_run_folder
    from dreamteacher.report.step import write_facts
    from dreamteacher.settings.file import restore_params
    from dreamteacher.stages.promote import run
    from dreamteacher.steps import effect

    with effect("promote") as done:
        outcome = run(restore_params(**settings), gate=Path(verdict.path), onnx=Path(onnx.path))
        served = {
            "champion": f"version {outcome.served.champion}" if outcome.served.champion else "none",
            "previous": outcome.served.previous or "none",
        }
        done.update(promoted=str(outcome.promoted).lower(), version=outcome.version, champion=served["champion"])
    print(f"promoted = {str(outcome.promoted).lower()}, version {outcome.version}: {outcome.reason}")
    print(f"champion is {served['champion']}, previous {served['previous']}")
    facts = {"promoted": outcome.promoted, "version": outcome.version, "reason": outcome.reason}
    write_facts(Path(page.path), "promote", {**facts, **served})
    remove_run_folder()
    return outcome.promoted, outcome.version, outcome.reason
