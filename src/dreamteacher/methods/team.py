"""Feature distillation from several teachers at once: heads for each, balanced losses, and teacher dropping."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import Samples
from dreamteacher.distillation.features import Quality, create_regressor, embedding_spread, feature_objective
from dreamteacher.distillation.team import Member, TeamRegressor, attend, balance, team_losses
from dreamteacher.distillation.whitening import fit_whitening
from dreamteacher.errors import UserError
from dreamteacher.methods.base import Method, normal
from dreamteacher.settings.schema import Params
from dreamteacher.students.backbone import Backbone
from dreamteacher.students.regressor import save_regressor
from dreamteacher.teachers.encodings import get_encoding
from dreamteacher.teachers.folder import TEACHER_FILE, choose_strides, open_teacher
from dreamteacher.training.order import draw_batches
from dreamteacher.training.randomness import StepRandom


class Team(Method):
    """The weighted mean of the teachers' scaled losses; see `distillation.team`. Saves the backbone and the regressor of the first teacher,
    with the common neck."""

    needs_teacher = True
    backbone: Backbone

    def __init__(self, params: Params, teacher: Path | None, scratch: Path, device: torch.device):
        super().__init__(params, teacher, scratch, device)
        assert teacher is not None
        encoding = get_encoding(self.settings)
        self.generators = {
            name: open_teacher(place, choose_strides(place, params.taps), encoding, device)
            for name, place in _places(params, teacher).items()
        }

    @classmethod
    def inputs(cls, params: Params, teacher: Path | None) -> dict[str, Path]:
        """The teachers by name, from their common folder."""
        return {f"teachers/{name}": place for name, place in _places(params, teacher).items()} if teacher else {}

    def build(self, backbone: Backbone, samples: Samples) -> TeamRegressor:
        """Backbone and neck with the heads of all teachers; whitening statistics and scales are measured on train pictures."""
        self.backbone, seed = backbone, self.params.seed
        regressors, self.team = {}, {}
        for name, generator in self.generators.items():
            regressors[name] = create_regressor(backbone, generator.taps, self.params.student, self.settings)
            scratch = self.scratch / name
            scratch.mkdir(parents=True, exist_ok=True)
            whiten, _ = fit_whitening(self.settings.whitening, generator, self._pictures(samples), seed, scratch)
            self.team[name] = Member(generator, feature_objective(self.settings, whiten, generator.taps))
        self.team = balance(self.team, self._pictures(samples), seed)
        return TeamRegressor(regressors)

    def _pictures(self, samples: Samples) -> Iterable[Tensor]:
        return draw_batches(samples, self.settings.stats_images, self.params.seed, self.device)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        """As `distillation.team.team_losses`, with the probability `distill.drop`."""
        mean, std = self.backbone.mean, self.backbone.std
        return team_losses(model, self.team, batch["image"], random, mean=mean, std=std, drop=self.settings.drop)

    def kept(self, model: nn.Module) -> nn.Module:
        """The whole model."""
        return model

    def measure(self, kept: nn.Module, batches: Iterable[tuple[Tensor, StepRandom]]) -> dict[str, float]:
        """`explained_variance` and `explained_within` of the whitened targets, also by teacher, and `embedding_spread`."""
        assert isinstance(kept, TeamRegressor)
        qualities, embeddings = {name: Quality(member.teacher.taps) for name, member in self.team.items()}, []
        for images, random in batches:
            embeddings.append(kept.backbone.embed(kept.backbone(normal(images, kept.backbone))))
            lessons, regressed = attend(kept, self.team, images, random, mean=kept.backbone.mean, std=kept.backbone.std)
            for name, member in self.team.items():
                qualities[name].update(*member.objective.compared(regressed[name], lessons[name].features))
        values: dict[str, float] = {}
        by_teacher = {name: quality.compute() for name, quality in qualities.items()}
        for figure in ("explained_variance", "explained_within"):
            shares = {f"{figure}_{name}": of_one[figure] for name, of_one in by_teacher.items() if figure in of_one}
            values |= shares | ({figure: fmean(shares.values())} if shares else {})
        return values | {"embedding_spread": embedding_spread(torch.cat(embeddings))}

    def save(self, kept: nn.Module, folder: Path) -> None:
        """Write `backbone/` and the regressor of the first teacher."""
        assert isinstance(kept, TeamRegressor)
        save_regressor(kept.regressor(next(iter(self.team))), folder)


def _places(params: Params, teachers: Path) -> dict[str, Path]:
    """The folders of the team's teachers, by name: those of `distill.team`, or all in `teachers`.

    Raises:
        UserError: one is missing, or there are fewer than two.
    """
    there = sorted(path.parent.name for path in teachers.glob(f"*/{TEACHER_FILE}"))
    names = params.distill.team or there
    if missing := [name for name in names if name not in there]:
        raise UserError(
            f"{teachers} holds no teacher {missing[0]!r}; there are {', '.join(there) or 'none'}, run `dreamteacher train-teacher`"
        )
    if len(names) < 2:
        raise UserError(f"distill.method = 'team' needs two teachers, and {teachers} holds {', '.join(there) or 'none'}")
    return {name: teachers / name for name in names}
