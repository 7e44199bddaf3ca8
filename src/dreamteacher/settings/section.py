"""Types and base classes of all groups of settings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator


def spelled(pattern: str, words: str) -> AfterValidator:
    """Validate text by a regular expression; `words` describes the pattern in the error message."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"write {words}")
        return value

    return AfterValidator(check)


Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Of a teacher or a recipe, and of a folder.
Name = Annotated[str, spelled(r"[a-z][a-z0-9_-]*", "small letters a to z, digits, - and _, beginning with a letter, such as cells-2")]
Word = Annotated[str, spelled(r"[A-Za-z][A-Za-z0-9_-]*", "letters a to z, digits, - and _, beginning with a letter, such as cells-2")]
Augment = Literal["natural", "overhead", "no-flip", "none"]
WARMUP = "linear warm-up before the cosine decay to 0, steps"
BATCH = "pictures per optimiser step, over all processes and accumulation parts"
PARTS = (
    "parts into which each process splits its share of the batch, to save memory; loss and gradient stay those of the whole batch, but "
    "batch normalisation takes its statistics from each part"
)


class Section(BaseModel):
    """A group of settings; unknown keys are refused and values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number_or_word(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as true or false, which pydantic would convert to 1 or 0."""
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("true and false (in YAML also yes, no, on, off) are not valid here; put the word in quotes")
        return value


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_bool, get_args(annotation))) or isinstance(annotation, bool)


def require_known(name: str, built_in: Sequence[str], group: str, noun: str) -> None:
    """Refuse a name that is neither in `built_in` nor an entry point of `group`; entry points are read only for names not built in.

    Raises:
        ValueError: there is none; names the nearest one, or all.
    """
    if name in built_in:
        return
    known = [*built_in, *sorted({point.name for point in entry_points(group=group)} - set(built_in))]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1) or known
        raise ValueError(f"there is no {noun} {name!r}; name {' or '.join(near)}")


class Training(Section):
    """Settings of every training stage; each stage overrides defaults."""

    steps: Positive = Field(1000, description="optimiser steps")
    batch_size: Positive = Field(32, description=BATCH)
    accumulate: Positive = Field(1, description=PARTS)
    optimizer: Literal["adamw", "lamb", "sgd"] = Field("adamw", description="Tab 17: AdamW; LAMB for batches of 2048 and more")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.05, description="Tab 17; not applied to biases, norms and timm's no_weight_decay parameters, such as position embeddings"
    )
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.95), description="betas of AdamW and LAMB, Tab 17; sgd uses the first as momentum")
    warmup_steps: Count = Field(100, description=WARMUP)
    clip: Annotated[float, Field(gt=0)] | None = Field(1.0, description="maximum gradient norm; null: no clipping")
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="decay of the exponential moving average of the weights; null: no averaging"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 if the device is fast in it, else fp32")
    compile: bool = Field(
        False,
        description="torch.compile of the trained network: adds a minute before the first step and makes each step faster; needs a "
        "C++ compiler, which the container image lacks",
    )
    workers: Count | Literal["auto"] = Field(
        "auto", description="data loader processes; auto: 0 if the decoded data set fits in memory and no GPU is used"
    )
    checkpoint_every: Positive = Field(500, description="steps between checkpoints; the last three are kept")
    log_every: Positive = Field(25, description="steps between log records")
