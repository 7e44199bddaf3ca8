"""A real stage on two nodes: the Kubernetes API is the tests' own, what the TrainJob's nodes run is torchrun with our command."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration
from kubernetes_api import KubernetesApi, finish
from tiny_chain import brief_params, draw

from dreamteacher.cluster import trainjob
from dreamteacher.cluster.trainjob import Nodes
from dreamteacher.errors import UserError
from dreamteacher.stage import read_stage
from dreamteacher.stages import ingest
from helpers import free_port


class Cluster:
    """Runs a TrainJob's nodes as processes of this machine, as the runtime torch-distributed would have its pods."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        self.logs: list[str] = []

    def __call__(self, job: dict[str, Any]) -> None:
        trainer = job["spec"]["trainer"]
        if not self.processes:
            env = os.environ | {each["name"]: each["value"] for each in trainer["env"]}
            env |= {"PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"])}
            env |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free_port())}
            command = [*trainer["command"], *trainer["args"]]
            self.processes = [
                subprocess.Popen(command, env=env | {"PET_NODE_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
                for rank in range(trainer["numNodes"])
            ]
        self.logs = [process.communicate()[1] for process in self.processes]
        finish("Failed" if any(process.returncode for process in self.processes) else "Complete")(job)


def test_stage_runs_on_two_nodes_and_its_output_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    params = brief_params(draw("segmentation", tmp_path / "pictures"))
    data, out, volume = tmp_path / "data", tmp_path / "model", tmp_path / "volume"
    ingest.run(params, out=data)
    fine_tuning = {"inputs": {"data": data}, "namespace": "ml", "init": "scratch", "seed": 0}  # of all that trains it starts fastest
    cluster = Cluster()
    with KubernetesApi() as api:
        settings = Configuration()
        settings.host, settings.retries = api.url, False
        monkeypatch.setattr(trainjob, "api_client", lambda: ApiClient(settings))
        api.on_get = cluster
        nodes = Nodes(image="i", mount=str(volume))
        trainjob.run_stage(nodes, "finetune", params, out=out, run_id="run-1", **fine_tuning)
    record = read_stage(out)
    assert record["stage"] == "finetune"
    assert record["params"]["finetune"]["steps"] == params.finetune.steps
    assert [process.returncode for process in cluster.processes] == [0, 0], cluster.logs
    assert not any((volume / "run-1").glob("finetune-*"))  # the volume is left as it was found

    with KubernetesApi() as api, pytest.raises(UserError, match="failed"):
        settings.host = api.url
        api.on_get = finish("Failed")
        trainjob.run_stage(nodes, "finetune", params, out=tmp_path / "x", run_id="run-2", **fine_tuning)
    assert (volume / "run-2").exists()  # what a retried step goes on with
