"""The terms that an objective adds up, by the names that `distill.objectives` gives weights to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import cast

from torch import Tensor

from dreamteacher.distillation.objectives import (
    attention_transfer,
    cosine_distance,
    feature_mse,
    relational,
    smooth_l1,
)
from dreamteacher.errors import UserError, first_line
from dreamteacher.settings.schema import OBJECTIVES_GROUP


@dataclass(frozen=True)
class Compared:
    """What a term compares: float32 maps without the margin, one `(B, C_l, h_l, w_l)` a tap, fine to coarse.

    Attributes:
        regressed: by the student.
        raw: the teacher's.
        whitened: the teacher's, whitened.
        pooled: `(B, C_last)`, regressed from the student's embedding; only where `global` is among the terms.
    """

    regressed: list[Tensor]
    raw: list[Tensor]
    whitened: list[Tensor]
    pooled: Tensor | None = None


Term = Callable[[Compared], Tensor]  # to a scalar, a mean over the pictures


def global_distance(compared: Compared) -> Tensor:
    """1 - cosine between what the student's embedding says and the average of the coarsest whitened map, averaged over pictures.

    The cosine is AM-RADIO's loss for summaries (arXiv 2312.06709). Whitened by `layernorm`, all pictures share a large part of that
    average; the other whitenings take it out.
    """
    assert compared.pooled is not None, "the student has no head for its embedding"
    return cosine_distance([compared.pooled[:, :, None, None]], [compared.whitened[-1].mean((2, 3), keepdim=True)])


BUILT_IN: dict[str, Term] = {
    "mse": lambda c: feature_mse(c.regressed, c.whitened),  # Eq 1
    "at": lambda c: attention_transfer(c.regressed, c.raw),  # Eq 2
    "cosine": lambda c: cosine_distance(c.regressed, c.whitened),
    "smooth_l1": lambda c: smooth_l1(c.regressed, c.whitened),
    "relational": lambda c: relational(c.regressed, c.whitened),
    "global": global_distance,
}


@cache
def get_term(name: str) -> Term:
    """The term of a name: one of BUILT_IN, or that of an entry point of OBJECTIVES_GROUP.

    Raises:
        UserError: there is none of this name, or its package does not load.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    entry = next(iter(entry_points(group=OBJECTIVES_GROUP, name=name)), None)
    if entry is None:
        raise UserError(f"distill.objectives has no term {name!r}; name {' or '.join(BUILT_IN)}, or install the package that offers it")
    try:
        return cast(Term, entry.load())
    except (ImportError, AttributeError) as error:
        raise UserError(f"objective {name!r} cannot be loaded ({first_line(error)}); install {entry.value} again") from error
