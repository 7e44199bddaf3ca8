"""A control: the DDPM's network with random weights, which has seen no picture: kind `random`."""

from __future__ import annotations

from dreamteacher.teachers import ddpm

open_folder = ddpm.open_folder


class Generator(ddpm.Generator):
    """What a backbone gains from it comes from the network's form and from the objective, not from a generator."""

    kind, trains = "random", False
