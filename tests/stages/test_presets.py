"""The generator of the size for 64 px, at its full width, with the settings that follow from its size."""

from __future__ import annotations

from pathlib import Path

from tiny_chain import BRIEF, Chain

from dreamteacher.settings.schema import Params
from dreamteacher.stages import distill_features, train_teacher
from dreamteacher.students.regressor import load_regressor
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import open_teacher

SHORT = {**BRIEF, "steps": 1, "batch_size": 2}


def test_small_trains_at_its_full_width_and_teaches_by_its_own_taps(chains: dict[str, Chain], tmp_path: Path) -> None:
    data = chains["segmentation"].root / "data"
    params = Params(
        teacher={**SHORT, "size": "small", "samples": 0},
        student={"backbone": "test_resnet", "width": 8},
        distill={**SHORT, "monitor_images": 2},
    )
    assert (params.teacher.resolution, params.distill.resolution, params.taps) == (64, 64, "auto")
    train_teacher.run(params, data=data, out=tmp_path / "teacher")
    metrics = distill_features.run(params, data=data, teacher=tmp_path / "teacher", out=tmp_path / "features")
    assert [name for name in metrics if name.startswith("ev_stride")] == ["ev_stride2", "ev_stride4", "ev_stride8"]
    teacher = open_teacher(tmp_path / "teacher", [2, 4, 8], Stochastic(0))
    assert [tap.channels for tap in teacher.taps] == [256, 256, 256]
    assert load_regressor(tmp_path / "features").heads.strides == [2, 4, 8]
