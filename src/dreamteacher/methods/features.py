"""Feature distillation: backbone and feature regressor learn the frozen generator's decoder features (Sec 3.1)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamteacher.data.dataset import Samples
from dreamteacher.distillation.features import FeatureObjective, Quality, create_regressor, embedding_spread, feature_objective
from dreamteacher.distillation.whitening import Statistics, fit_whitening, save_statistics
from dreamteacher.errors import UserError
from dreamteacher.methods.base import Method, normal
from dreamteacher.settings.schema import Params
from dreamteacher.students.backbone import Backbone
from dreamteacher.students.regressor import FeatureRegressor, load_regressor, save_regressor
from dreamteacher.teachers.encodings import get_encoding
from dreamteacher.teachers.folder import choose_strides, open_teacher
from dreamteacher.training.order import draw_batches
from dreamteacher.training.randomness import StepRandom


class Features(Method):
    """Eq 3 between the regressed maps and the generator's. The regressor is saved with the backbone."""

    needs_teacher = True
    backbone: Backbone
    objective: FeatureObjective
    statistics: Statistics

    def __init__(self, params: Params, teacher: Path | None, scratch: Path, device: torch.device):
        super().__init__(params, teacher, scratch, device)
        assert teacher is not None
        self.generator = open_teacher(teacher, choose_strides(teacher, params.taps), get_encoding(self.settings), device)

    def build(self, backbone: Backbone, samples: Samples) -> FeatureRegressor:
        """Backbone, neck and heads; the whitening statistics are measured on train pictures."""
        self.backbone, settings, taps = backbone, self.settings, self.generator.taps
        regressor = create_regressor(backbone, taps, self.params.student, settings)
        pictures = draw_batches(samples, settings.stats_images, self.params.seed, self.device)
        whiten, self.statistics = fit_whitening(settings.whitening, self.generator, pictures, self.params.seed, self.scratch)
        self.objective = feature_objective(settings, whiten, taps)
        return regressor

    def loss(self, model: nn.Module, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        """Losses on the lesson's pictures, which may be samples of the teacher."""
        lesson = self.generator.teach(batch["image"], random)
        return self.objective(model(normal(lesson.images, self.backbone), lesson.step), lesson.features)

    def kept(self, model: nn.Module) -> nn.Module:
        """The whole model, since label distillation also starts from the neck."""
        return model

    def go_on_from(self, folder: Path, model: nn.Module) -> None:
        """As in `Method`, also with neck and heads."""
        try:
            model.load_state_dict(load_regressor(folder).state_dict())
        except RuntimeError as error:
            raise UserError(
                f"{folder} has another backbone, neck or taps than the settings; start from a matching one, or without"
            ) from error

    def measure(self, kept: nn.Module, batches: Iterable[tuple[Tensor, StepRandom]]) -> dict[str, float]:
        """`explained_variance` of the whitened targets, also by tap, `explained_within`, and `embedding_spread`: see `Quality`."""
        assert isinstance(kept, FeatureRegressor)
        quality, embeddings = Quality(self.generator.taps), []
        for images, random in batches:
            lesson = self.generator.teach(images, random)
            pyramid = kept.backbone(normal(lesson.images, kept.backbone))
            embeddings.append(kept.backbone.embed(pyramid))
            regressed = kept.regress(pyramid, lesson.images.shape[2:], lesson.step)
            quality.update(*self.objective.compared(regressed, lesson.features))
        return {**quality.compute(), "embedding_spread": embedding_spread(torch.cat(embeddings))}

    def save(self, kept: nn.Module, folder: Path) -> None:
        """Write `backbone/`, the regressor and the whitening statistics, if any."""
        assert isinstance(kept, FeatureRegressor)
        save_regressor(kept, folder)
        save_statistics(self.statistics, folder)
