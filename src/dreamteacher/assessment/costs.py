"""The cost of the chain: seconds of every stage, and the price."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from dreamteacher.assessment.plan import Speed
from dreamteacher.data.dataset import ImageSet
from dreamteacher.project.cost import START, StageCost, rough_duration, stage_costs
from dreamteacher.settings.schema import Params


def chain_cost(params: Params, train: ImageSet, val: ImageSet, *, speed: Speed, held_out: int, device: torch.device) -> dict[str, Any]:
    """`stages`, `seconds` and `price` of the chain; pretraining steps are timed here.

    Args:
        params: settings of the chain.
        train: split.
        val: split, on which evaluate scores models.
        speed: of a fine-tuning step, and of scoring a model on `held_out` pictures.
        held_out: number of pictures.
        device: where the steps are timed.
    """
    seeds = len(params.compare.seeds)
    trained = len(params.compare.inits) * seeds
    stages = stage_costs(params, train, device)
    stages.append(StageCost("finetune", trained * (START + params.finetune.steps * speed.step), trained))
    stages.append(StageCost("evaluate", START + speed.score / held_out * len(val.labelled()) * (trained + 2 * seeds)))
    seconds, price = sum(stage.seconds or 0.0 for stage in stages), params.assess.price_per_hour
    return {
        "stages": [asdict(stage) for stage in stages],
        "seconds": seconds,
        "price": None if price is None else price * seconds / 3600,
    }


def pretraining_cost(params: Params, train: ImageSet, device: torch.device) -> str:
    """The time of the stages that need no labels, in words."""
    costs = stage_costs(params, train, device, with_labels=False)
    return ", ".join(f"{cost.name} {rough_duration(cost.seconds)}" for cost in costs if cost.seconds is not None) or "not measured"
