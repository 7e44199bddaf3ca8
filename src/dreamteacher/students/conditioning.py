"""Conditioning of the heads on the noise step of the regressed features (CleanDIFT, arXiv 2412.03439)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDING = 128  # sines and cosines of the step


class StepCondition(nn.Module):
    """Scale and shift of every channel of the neck's levels, as a function of the noise step; the identity before training.

    Without it, a student that sees clean pictures would regress the average of the teacher's features over noise steps.
    """

    def __init__(self, width: int, levels: int):
        """`levels` of `width` channels."""
        super().__init__()
        self.width, self.levels = width, levels
        last = nn.Linear(EMBEDDING, 2 * levels * width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU(), last)

    def forward(self, levels: list[Tensor], step: Tensor) -> list[Tensor]:
        """Modulate levels `(B, width, h_l, w_l)`, of which the finest may be missing, by noise steps `(B,)`."""
        from diffusers.models.embeddings import get_timestep_embedding

        table = self.network(get_timestep_embedding(step, EMBEDDING)).view(len(step), self.levels, 2, self.width, 1, 1)
        changes = table[:, self.levels - len(levels) :].unbind(1)
        return [torch.addcmul(maps + change[:, 1], maps, change[:, 0]) for maps, change in zip(levels, changes, strict=True)]
