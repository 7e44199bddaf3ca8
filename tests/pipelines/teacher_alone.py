"""The first steps of the pretrain pipeline, up to the teacher, as a program: `python teacher_alone.py PROJECT ROOT`."""

import sys

from kfp import dsl, local

from components.fetch_data import fetch_data
from components.ingest import ingest
from components.train_teacher import train_teacher


@dsl.pipeline
def teacher_alone(project: str) -> None:
    """Pictures of a folder to a teacher."""
    given = fetch_data(project=project, git_url="", data_rev="here", settings=[], seeds=[0], fresh=["scratch"], modes=["mix"]).outputs
    data = ingest(source=given["source"], ingest=given["ingest"]).outputs["out"]
    train_teacher(data=data, seed=given["seed"], teacher=given["teacher"])


if __name__ == "__main__":
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2])
    teacher_alone(project=sys.argv[1])
