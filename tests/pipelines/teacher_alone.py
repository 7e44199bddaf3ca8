"""The first steps of the pretrain pipeline, up to the teacher, as a program: `python teacher_alone.py PROJECT ROOT`."""

import sys

from kfp import dsl, local

from components.fetch_data import fetch_data
from components.find_commit import find_commit
from components.ingest import ingest
from components.train_teacher import train_teacher


@dsl.pipeline
def teacher_alone(project: str) -> None:
    """Pictures of a folder to a teacher."""
    found = find_commit(git_url=project, data_rev="", settings=[], pipeline="pretrain").outputs
    fetched = fetch_data(git_url=project, data_version=found["data_version"], source=found["source"])
    data = ingest(pictures=fetched.outputs["pictures"], settings=found["ingest"]).outputs["out"]
    train_teacher(data=data, settings=found["train_teacher"])


if __name__ == "__main__":
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2])
    teacher_alone(project=sys.argv[1])
