"""Layer-wise learning rate decay of a backbone (Bao et al. 2021, BEiT)."""

from __future__ import annotations

import copy
from typing import Any


def layer_scales(model: Any, decay: float) -> dict[str, float]:
    """Learning rate scale of each parameter of a timm model, by name: `decay` to the power of its distance to the head.

    Layers are timm's own (`group_matcher`; groups of 12 parameters for models without one), so each block counts as a layer, also in CNNs.
    """
    from timm.optim import param_groups_layer_decay

    # timm counts layers from the head; without a head it would count the last block as one.
    headed = copy.deepcopy(model)
    headed.reset_classifier(1)
    names = {parameter: name for name, parameter in headed.named_parameters()}
    groups = param_groups_layer_decay(headed, layer_decay=decay)
    scales = {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}
    return {name: scales[name] for name, _ in model.named_parameters()}
