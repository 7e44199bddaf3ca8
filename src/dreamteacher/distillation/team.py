"""Several teachers of one student: heads for each, balanced losses, and teacher dropping."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dreamteacher.distillation.features import FeatureObjective
from dreamteacher.errors import UserError
from dreamteacher.students.regressor import FeatureRegressor
from dreamteacher.tasks.model import normalize
from dreamteacher.teachers.base import Lesson, Teacher
from dreamteacher.training.randomness import StepRandom, derive_seed
from dreamteacher.training.transfer import constant

Rows = tuple[int, int]  # of a batch: from, to


@dataclass(frozen=True)
class Member:
    """One teacher of a team.

    Attributes:
        teacher: frozen.
        objective: the loss against this teacher, with its own whitening.
        weight: weight of this teacher.
        scale: divisor of its loss; see `balance`.
    """

    teacher: Teacher
    objective: FeatureObjective
    weight: float = 1.0
    scale: float = 1.0


Team = dict[str, Member]  # by the name of the teacher


class TeamRegressor(nn.Module):
    """One backbone and one neck, shared by the heads of all teachers.

    Every module is registered once, because EMA would otherwise update shared weights twice per step.
    """

    def __init__(self, regressors: dict[str, FeatureRegressor]):
        """Use the heads of regressors on one backbone, by the name of the teacher, and the neck of the first."""
        super().__init__()
        first = next(iter(regressors.values()))
        if any(regressor.backbone is not first.backbone for regressor in regressors.values()):
            raise ValueError("the regressors of a team need one backbone")
        self.backbone, self.neck = first.backbone, first.neck
        self.facts = {name: regressor.facts for name, regressor in regressors.items()}
        self.finest = min(regressor.heads.finest for regressor in regressors.values())
        parts = [{"heads": r.heads, "condition": r.condition, "pooled": r.pooled} for r in regressors.values()]
        self.own = nn.ModuleList(nn.ModuleDict({key: part for key, part in of.items() if part is not None}) for of in parts)

    def forward(self, normalized: Tensor, rows: dict[str, Rows], steps: dict[str, Tensor | None]) -> dict[str, list[Tensor]]:
        """The outputs of each teacher's heads for its own rows of the batch.

        Args:
            normalized: `(B, 3, H, W)`, normalised as the backbone expects.
            rows: of the batch, by teacher.
            steps: noise steps of the teacher's features, one for each of its rows, or None.

        Returns:
            By teacher, the outputs of a FeatureRegressor.
        """
        pyramid, size = self.backbone(normalized), normalized.shape[2:]
        levels, embedding = self.neck(pyramid, self.finest), self.backbone.embed(pyramid)
        regressed = {}
        for name, module in zip(self.facts, self.own, strict=True):
            own, step, (begin, end) = cast(Any, module), steps[name], rows[name]
            part = [level[begin:end] for level in levels]
            if "condition" in own and step is not None:
                part = own["condition"](part, step)
            maps = own["heads"](part, size)
            regressed[name] = [*maps, own["pooled"](embedding[begin:end])] if "pooled" in own else maps
        return regressed

    def regressor(self, name: str) -> FeatureRegressor:
        """The FeatureRegressor of one teacher, for `save_regressor`; it shares all modules with the team."""
        regressor = FeatureRegressor(self.backbone, **self.facts[name])
        regressor.neck = self.neck
        for key, part in cast(nn.ModuleDict, self.own[list(self.facts).index(name)]).items():
            setattr(regressor, key, part)
        return regressor


def balance(team: Team, batches: Iterable[Tensor], seed: int) -> Team:
    """The team with the scale of each member: its loss for a student that predicts 0 everywhere.

    A loss divided by its scale is the share not learned yet, and comparable between teachers with different features, taps and terms: the
    spreads of teachers' features differ by a factor of up to 191 (PHI-S, arXiv 2410.01680). The scale is measured once, before training:
    a running one would increase the weight of a teacher the better it is learned.

    Args:
        team: members; their current scales are ignored.
        batches: of pictures `(B, 3, H, W)` in [0, 1] on the teachers' device, all of one size.
        seed: draws the noise.

    Raises:
        UserError: the features of a member are the same everywhere.
    """
    sums, count = dict.fromkeys(team, 0.0), 0
    for i, images in enumerate(batches):
        count += len(images)
        for name, member in team.items():
            features = member.teacher.teach(images, StepRandom(seed, i, 0, 1, images.device)).features
            nothing = [torch.zeros_like(maps) for maps in features]
            if "global" in member.objective.weights:
                nothing.append(torch.zeros_like(features[-1][:, :, 0, 0]))
            sums[name] += len(images) * float(member.objective(nothing, features)["loss"])
    for name, total in sums.items():
        if not total > 0:
            raise UserError(f"teacher {name!r} has the same features everywhere, from which nothing can be learned; leave it out")
    return {name: replace(member, scale=sums[name] / count) for name, member in team.items()}


def attend(
    model: nn.Module, team: Team, images: Tensor, random: StepRandom, *, mean: list[float], std: list[float]
) -> tuple[dict[str, Lesson], dict[str, list[Tensor]]]:
    """The lesson of each teacher, and a TeamRegressor's outputs for it (one forward pass); see `team_losses`."""
    lessons = {name: member.teacher.teach(images, random) for name, member in team.items()}
    batch, rows = _join(lessons)
    return lessons, model(normalize(batch, mean, std), rows, {name: lesson.step for name, lesson in lessons.items()})


def team_losses(
    model: nn.Module, team: Team, images: Tensor, random: StepRandom, *, mean: list[float], std: list[float], drop: float = 0.0
) -> dict[str, Tensor]:
    """The losses of one step of a TeamRegressor, in one forward pass.

    Args:
        model: perhaps wrapped in DDP.
        team: balanced.
        images: `(B, 3, H, W)` in [0, 1]. Teachers that cannot encode pictures add their own samples to the student's batch.
        random: source of all that is drawn.
        mean: of the student's normalisation, with `std`.
        std: see `mean`.
        drop: probability of leaving a teacher out of this step; the teacher with the largest loss is never left out (teacher dropping of
            UNIC, ECCV 2024, which uses one half and draws per picture).

    Returns:
        `loss`, the weighted mean of the scaled losses of the teachers in this step, and `unlearned_NAME`, the scaled loss of every teacher.

    Raises:
        UserError: teachers make pictures of other sizes than the given ones.
    """
    lessons, regressed = attend(model, team, images, random, mean=mean, std=std)
    shares = torch.stack([m.objective(regressed[name], lessons[name].features)["loss"] / m.scale for name, m in team.items()])
    # One draw for all accumulation parts of the step.
    generator = torch.Generator().manual_seed(derive_seed("teachers", random.seed, random.step))
    drawn = torch.rand(len(team), generator=generator) >= drop
    counts = constant(drawn.tolist(), shares.device) | (torch.arange(len(team), device=shares.device) == shares.argmax())
    weights = constant([member.weight for member in team.values()], shares.device) * counts
    loss = (weights * shares).sum() / weights.sum()
    return {"loss": loss, **{f"unlearned_{name}": share for name, share in zip(team, shares.unbind(), strict=True)}}


def _join(lessons: dict[str, Lesson]) -> tuple[Tensor, dict[str, Rows]]:
    """The pictures of all lessons, each once, as one batch, and the rows of each lesson."""
    pictures: list[Tensor] = []
    begins: list[int] = []
    rows = {}
    for name, lesson in lessons.items():
        place = next((i for i, batch in enumerate(pictures) if batch is lesson.images), len(pictures))
        if place == len(pictures):
            begins.append(sum(map(len, pictures)))
            pictures.append(lesson.images)
        if lesson.images.shape[1:] != pictures[0].shape[1:]:
            sizes = [f"{shape[0]}x{shape[1]}" for shape in (pictures[0].shape[2:], lesson.images.shape[2:])]
            raise UserError(f"teacher {name!r} makes pictures of {sizes[1]} px, another has {sizes[0]} px: set distill.resolution alike")
        rows[name] = (begins[place], begins[place] + len(lesson.images))
    return torch.cat(pictures) if len(pictures) > 1 else pictures[0], rows
