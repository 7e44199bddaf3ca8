"""The first steps of the pretrain pipeline, up to the teacher."""

from pathlib import Path
from types import SimpleNamespace

from pipelines import local


def build(*_, **__):
    """Pictures of a folder to a teacher."""
    from kfp import dsl

    from components.fetch_data import fetch_data
    from components.find_commit import find_commit
    from components.ingest import ingest
    from components.train_teacher import train_teacher

    @dsl.pipeline
    def teacher_alone(project: str) -> None:
        found = find_commit(git_url=project, data_rev="", settings=[], pipeline="pretrain").outputs
        fetched = fetch_data(git_url=project, data_version=found["data_version"], source=found["source"])
        data = ingest(pictures=fetched.outputs["pictures"], settings=found["ingest"]).outputs["out"]
        train_teacher(data=data, name=found["teacher"], settings=found["train_teacher"], changes={})

    return teacher_alone


def main(project: Path, root: Path) -> None:
    """Run them as a program does: the process is not to be used for another pipeline."""
    local.import_module = lambda _: SimpleNamespace(build=build)
    local.run_local("teacher-alone", root, {"project": str(project)})
