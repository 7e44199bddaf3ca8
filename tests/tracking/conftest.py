"""Tracking into a database or a real server, in an experiment of each test's own."""

import pytest

from helpers import free_port


@pytest.fixture(scope="session")
def database(new_database, tmp_path_factory):
    """One for all."""
    return new_database(tmp_path_factory.mktemp("tracked"))


@pytest.fixture(autouse=True)
def tracked(in_tmp, database, monkeypatch, request):
    """Tracking is on, into an experiment of the test's own."""
    monkeypatch.delenv("DREAMTEACHER_TRACKING")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # the machine may be busy


@pytest.fixture
def live(mlflow_server, monkeypatch):
    """A real server instead."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)


@pytest.fixture
def dead(monkeypatch):
    """The address of a server that is not there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
