"""The tiny chain, run once for all tests of its stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tiny_chain import TASKS, Chain, brief_params, draw

from dreamteacher.teachers import unet

SLIM = {"widths": (8, 8, 8, 16), "depth": 1, "attention": (8,), "head_dim": 8, "groups": 4, "dropout": 0.0}


@contextmanager
def slim() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unet.SIZES, "tiny", SLIM)
        yield


@pytest.fixture(scope="module", autouse=True)
def slim_unet() -> Iterator[None]:
    """The `tiny` preset with few channels and levels; for this folder only."""
    with slim():
        yield


@pytest.fixture(scope="session")
def chains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chain]:
    """A finished chain for each task."""
    made = {}
    for task in TASKS:
        root = tmp_path_factory.mktemp(task)
        source = draw(task, root / "pictures")
        with slim():
            made[task] = Chain(task, source, root / "one", brief_params(source)).run()
    return made


@pytest.fixture(params=TASKS)
def chain(chains: dict[str, Chain], request: pytest.FixtureRequest) -> Chain:
    return chains[request.param]
