"""Shared parts of the GAN imports: names, shapes and truncation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from dreamteacher.errors import UserError

Weights = dict[str, Tensor]
# Pattern of the source's name -> our name, in which {n} is the number that the function computes from the pattern's groups.
Names = list[tuple[str, str, Callable[..., int] | None]]
Network = TypeVar("Network", bound=nn.Module)


def rename(found: Weights, names: Names, path: Path, passed: str = r"(?!)") -> Weights:
    """Rename weights by the first matching pattern; names that match `passed` are ignored.

    Raises:
        UserError: a name matches none.
    """
    renamed: Weights = {}
    for name, value in found.items():
        if re.fullmatch(passed, name):
            continue
        for pattern, replacement, number in names:
            if match := re.fullmatch(pattern, name):
                key = match.expand(replacement)
                renamed[key.replace("{n}", str(number(*match.groups()))) if number else key] = value
                break
        else:
            raise UserError(f"{path} has {name}, which a generator of this layout has not; it is of another architecture")
    return renamed


def load(network: Network, weights: Weights, path: Path) -> Network:
    """`network` with `weights` in float32.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    own = network.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        shapes = [tuple(side[name].shape) if name in side else "none" for side in (weights, own)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{path} does not fit a {type(network).__name__}: of {name} it has {shapes[0]}, the network {shapes[1]}")
    network.load_state_dict(weights)  # copy_ casts
    return network.eval()


def read_truncation(options: dict[str, str]) -> float:
    """The option `truncation`, 1 by default.

    Raises:
        UserError: it is no number in (0, 1].
    """
    try:
        value = float(options.get("truncation", 1))
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UserError(f"--option truncation={options['truncation']} is no number above 0 and up to 1")
    return value
