"""`dreamteacher init` in a temporary folder, on a made-up machine."""

from pathlib import Path

import pytest
from project_pictures import CPU, FAST

from dreamteacher.project import create


@pytest.fixture(autouse=True)
def a_machine_that_is_not_this_one(monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> None:
    monkeypatch.setattr(create, "look", lambda: CPU)
    monkeypatch.setattr(create, "measure", lambda params, machine: FAST)
