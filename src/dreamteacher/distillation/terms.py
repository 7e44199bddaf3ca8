"""The loss terms of `distill.objectives`, by name. Other packages may add terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

from torch import Tensor

from dreamteacher.distillation import objectives
from dreamteacher.plugins import load_plugin
from dreamteacher.settings.pretraining import OBJECTIVES, OBJECTIVES_GROUP

BUILT_IN = {name: f"{__name__}:{name}" for name in OBJECTIVES} | {"global": f"{__name__}:global_distance"}


@dataclass(frozen=True)
class Compared:
    """Inputs of a term: float32 maps without the margin, one `(B, C_l, h_l, w_l)` per tap, fine to coarse.

    Attributes:
        regressed: by the student.
        raw: the teacher's.
        whitened: the teacher's, whitened.
        pooled: `(B, C_last)`, regressed from the student's embedding; only if `global` is among the terms.
    """

    regressed: list[Tensor]
    raw: list[Tensor]
    whitened: list[Tensor]
    pooled: Tensor | None = None


Term = Callable[[Compared], Tensor]  # to a scalar, a mean over the pictures


@cache
def get_term(name: str) -> Term:
    """The term with this name: one of BUILT_IN, or an entry point of OBJECTIVES_GROUP.

    Raises:
        UserError: there is none of this name, or it cannot be loaded.
    """
    return cast(Term, load_plugin(OBJECTIVES_GROUP, name, BUILT_IN, "term of distill.objectives"))


def mse(compared: Compared) -> Tensor:
    """Eq 1."""
    return objectives.feature_mse(compared.regressed, compared.whitened)


def at(compared: Compared) -> Tensor:
    """Eq 2, with raw targets."""
    return objectives.attention_transfer(compared.regressed, compared.raw)


def cosine(compared: Compared) -> Tensor:
    """See `objectives.cosine_distance`."""
    return objectives.cosine_distance(compared.regressed, compared.whitened)


def smooth_l1(compared: Compared) -> Tensor:
    """See `objectives.smooth_l1`; AM-RADIO (arXiv 2312.06709) adds 0.1 of it to 0.9 of `cosine`."""
    return objectives.smooth_l1(compared.regressed, compared.whitened)


def relational(compared: Compared) -> Tensor:
    """See `objectives.relational`."""
    return objectives.relational(compared.regressed, compared.whitened)


def global_distance(compared: Compared) -> Tensor:
    """1 - cosine between the regression from the student's embedding and the average of the coarsest whitened map, averaged over pictures.

    The cosine is AM-RADIO's summary loss. With `layernorm`, a large part of that average is common to all pictures; the other whitenings
    remove it.
    """
    assert compared.pooled is not None, "the student has no head for its embedding"
    return objectives.cosine_distance([compared.pooled[:, :, None, None]], [compared.whitened[-1].mean((2, 3), keepdim=True)])
