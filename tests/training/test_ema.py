"""Averaged weights."""

import pytest
import torch
from torch import nn

from dreamteacher.training.ema import create_ema, update_ema


def test_decay_warms_up_as_written() -> None:
    """min(decay, (1 + step) / (10 + step)), for parameters and buffers; counters are copied."""
    model = nn.BatchNorm1d(1)
    ema = create_ema(model, 0.5)
    weight, mean = 1.0, 0.0
    for step in range(30):
        with torch.no_grad():
            model.weight.fill_(step)
            model.running_mean.fill_(2.0 * step)
            model.num_batches_tracked.fill_(step)
        update_ema(ema, model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        weight, mean = decay * weight + (1 - decay) * step, decay * mean + (1 - decay) * 2 * step
        assert ema.module.weight.item() == pytest.approx(weight)
        assert ema.module.running_mean.item() == pytest.approx(mean)
        assert ema.module.num_batches_tracked.item() == step
    assert not ema.module.training
