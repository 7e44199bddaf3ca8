"""Learning rates that fall from the head to the first layer of a backbone (Bao et al. 2021, BEiT)."""

from __future__ import annotations

import copy
from typing import Any


def layer_scales(model: Any, decay: float) -> dict[str, float]:
    """The share of the learning rate that each parameter of a timm model gets, by name: `decay` to the power of its distance to the head.

    Layers are timm's own (`group_matcher`; of models without one, groups of 12 parameters), so blocks count one by one, in CNNs as well.
    """
    from timm.optim import param_groups_layer_decay

    # timm counts layers from the head; without one it would take the last block for it.
    headed = copy.deepcopy(model)
    headed.reset_classifier(1)
    names = {parameter: name for name, parameter in headed.named_parameters()}
    groups = param_groups_layer_decay(headed, layer_decay=decay)
    scales = {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}
    return {name: scales[name] for name, _ in model.named_parameters()}
