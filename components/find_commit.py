"""Resolve what a run depends on: commit, data version, and each stage's settings."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Output

from components import IMAGE


# KFP ships only the function's source, so names and types of its outputs must be written there.
@dsl.component(base_image=IMAGE, install_kfp_package=False)
def find_commit(git_url: str, data_rev: str, settings: list, pipeline: str, page: Output[HTML]) -> NamedTuple(
    "Resolved",
    [
        ("commit", str),
        ("source", str),
        ("data_version", str),
        ("teacher", str),
        ("recipe", str),
        ("fresh", list),
        ("teachers", list),
        ("recipes", dict),
        ("passes", dict),
        ("ingest", dict),
        ("ingest_incoming", dict),
        ("compare_data", dict),
        ("train_teacher", dict),
        ("distill_features", dict),
        ("train_interpreter", dict),
        ("distill_labels", dict),
        ("finetune", dict),
        ("evaluate", dict),
        ("export_onnx", dict),
        ("publish", dict),
        ("report", dict),
        ("gate", dict),
    ],
):
    """Resolve a revision to a commit, find the last commit that changed its pictures, and extract each stage's settings.

    It is never cached, because a branch can move.

    Args:
        git_url: repository of the project, or a folder that all steps can read.
        data_rev: its revision: commit, tag or branch; empty for a folder.
        settings: overrides of that revision's params.yaml, as KEY=VALUE.
        pipeline: pretrain or retrain.
        page: the data version and all settings.
    """
    import os
    from dataclasses import asdict
    from pathlib import Path

    from dreamteacher.report.step import write_facts
    from dreamteacher.stages.find_commit import resolve
    from dreamteacher.steps import announce

    os.environ["DREAMTEACHER_WAIT_MINUTES"] = "0"  # without retries: a mistyped address must fail at once, and nothing is lost yet
    announce("find-commit", {"git_url": git_url, "data_rev": data_rev, "settings": settings})
    found = resolve(git_url=git_url, data_rev=data_rev, overrides=settings, pipeline=pipeline)
    values = asdict(found)
    facts = {name: values[name] for name in ("commit", "source", "data_version")}
    write_facts(Path(page.path), "find-commit", {**facts, **found.params.model_dump(mode="json")})
    names = ("commit", "source", "data_version", "teacher", "recipe", "fresh", "teachers", "recipes", "passes")
    return (*(values[name] for name in names), *found.settings.values())
