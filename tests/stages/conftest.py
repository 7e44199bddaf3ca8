"""The tiny chain, run once for all tests of its stages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tiny_chain import TASKS, Chain, brief_params, draw

from slim_unets import slimmest


@pytest.fixture(scope="module", autouse=True)
def slim_unet() -> Iterator[None]:
    """The `tiny` preset with few channels and levels; for this folder only."""
    with slimmest():
        yield


@pytest.fixture(scope="session")
def chains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chain]:
    """A finished chain for each task."""
    made = {}
    for task in TASKS:
        root = tmp_path_factory.mktemp(task)
        source = draw(task, root / "pictures")
        with slimmest():
            made[task] = Chain(task, source, root / "one", brief_params(source)).run()
    return made


@pytest.fixture(params=TASKS)
def chain(chains: dict[str, Chain], request: pytest.FixtureRequest) -> Chain:
    return chains[request.param]
