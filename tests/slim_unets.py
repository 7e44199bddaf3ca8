"""The U-Net of teacher.size `tiny` with few channels, so that a test takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dreamteacher.teachers import unet

SLIM = {**unet.SIZES["tiny"], "widths": (8, 8, 16, 16), "head_dim": 8, "groups": 4}
SLIMMEST = {"widths": (8, 8, 8, 16), "depth": 1, "attention": (8,), "head_dim": 8, "groups": 4, "dropout": 0.0}  # for whole chains


@contextmanager
def slimmest() -> Iterator[None]:
    """`tiny` is SLIMMEST meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unet.SIZES, "tiny", SLIMMEST)
        yield
