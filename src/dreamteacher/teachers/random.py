"""A control: the DDPM's network with random weights: kind `random`."""

from __future__ import annotations

from dreamteacher.teachers import ddpm

open_folder = ddpm.open_folder


class Generator(ddpm.Generator):
    """A gain from it comes from the architecture and the objective, not from a trained generator."""

    kind, trains = "random", False
