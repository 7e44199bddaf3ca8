"""Small models, exported and published by the real stages, behind the real tritonserver."""

import pytest
import torch
from serving_samples import PARAMS, make_data, make_evaluation, make_finetuned, make_model

from dreamteacher.serving.triton_repository import write_repository
from dreamteacher.serving.triton_server import running_triton
from dreamteacher.stages import export_onnx


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """One thread: pictures are tiny, and on a busy machine two threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty project folder, without tracking."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "off")
    return tmp_path


@pytest.fixture(scope="package")
def project(tmp_path_factory):
    """artifacts of both tasks: data, finetuned/TASK, onnx/TASK, evaluation."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DREAMTEACHER_TRACKING", "off")
        make_data(folder / "data")
        make_evaluation(folder / "evaluation")
        for task in ("segmentation", "classification"):
            make_finetuned(folder / "finetuned" / task, make_model(task))
            export_onnx.run(PARAMS, data=folder / "data", finetuned=folder / "finetuned" / task, out=folder / "onnx" / task)
    return folder


@pytest.fixture(scope="package")
def models(project):
    """Triton's model name -> its ONNX file."""
    onnx = project / "onnx"
    return {
        "cells": onnx / "segmentation" / "model.onnx",
        "cells-backbone": onnx / "segmentation" / "backbone.onnx",
        "stages": onnx / "classification" / "model.onnx",
    }


@pytest.fixture(scope="package")
def repository(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton") / "local"
    write_repository(models, folder, backend="python", settings=PARAMS.publish)
    return folder


@pytest.fixture(scope="module")
def url(folder):
    """URL of a server of `folder`/triton; a test module overrides the fixture `folder`."""
    with running_triton(folder / "triton") as server:
        yield server.http_url


@pytest.fixture(scope="package")
def triton(repository):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository.parent)
        with running_triton(repository) as server:
            yield server


@pytest.fixture(scope="session")
def registry_database(new_database, tmp_path_factory):
    """One for all."""
    return new_database(tmp_path_factory.mktemp("registry"))


@pytest.fixture(params=["database", "server"])
def registry(request, in_tmp, monkeypatch):
    """A client of a registry in which every test has a model of its own, named as the test."""
    import mlflow

    uri = request.getfixturevalue("registry_database" if request.param == "database" else "mlflow_server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # the machine may be busy
    yield mlflow.MlflowClient(uri)
    mlflow.set_tracking_uri(None)
