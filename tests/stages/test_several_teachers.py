"""Feature distillation from several teachers, as a stage of the chain."""

import json
from pathlib import Path

import pytest
from tiny_chain import BRIEF, Chain, brief_params

from dreamteacher.errors import UserError
from dreamteacher.settings.recipes import of_recipe
from dreamteacher.stages import distill_features, finetune, train_teacher
from dreamteacher.students.regressor import load_regressor

RECIPES = {
    "teachers": {"teacher": {}, "pixels": {"kind": "pixels"}},
    "recipes": {"features": {"teacher": "teacher"}, "both": {"teacher": ".", "distill": {"method": "team", "drop": 0.5}}},
}


@pytest.fixture(scope="module")
def teachers(chains: dict[str, Chain], tmp_path_factory: pytest.TempPathFactory) -> Path:
    chain, folder = chains["segmentation"], tmp_path_factory.mktemp("teachers")
    (folder / "teacher").symlink_to(chain.root / "teacher")
    params = brief_params(chain.source, teacher={"kind": "pixels"})
    train_teacher.run(params, data=chain.root / "data", name="pixels", out=folder / "pixels")
    (folder / "none").mkdir()  # the mark of recipes without a teacher
    return folder


def test_a_backbone_learns_from_all_teachers_and_is_finetuned(chains: dict[str, Chain], teachers: Path, tmp_path: Path) -> None:
    chain = chains["segmentation"]
    params = of_recipe(brief_params(chain.source, **RECIPES), "both")
    metrics = distill_features.run(params, data=chain.root / "data", teacher=teachers, recipe="both", out=tmp_path / "both")
    means = [metrics[f"explained_variance_{name}"] for name in ("pixels", "teacher")]
    assert metrics["explained_variance"] == pytest.approx(sum(means) / 2)
    record = json.loads((tmp_path / "both/stage.json").read_text())
    assert set(record["inputs"]) == {"data", "teachers/pixels", "teachers/teacher"}
    assert load_regressor(tmp_path / "both").facts["tap_strides"] == [4, 8]
    options = {"data": chain.root / "data", "backbone": tmp_path / "both", "seed": 0}
    assert finetune.run(params, **options, init="both", out=tmp_path / "finetuned")["loss"] > 0


def test_a_team_may_be_some_of_the_teachers_and_must_be_two(chains: dict[str, Chain], teachers: Path, tmp_path: Path) -> None:
    chain = chains["segmentation"]
    options = {"data": chain.root / "data", "teacher": teachers, "out": tmp_path / "out"}
    missing = brief_params(chain.source, distill=BRIEF | {"method": "team", "team": ["teacher", "gan"]})
    with pytest.raises(UserError, match="holds no teacher 'gan'; there are pixels, teacher"):
        distill_features.run(missing, **options)
    alone = brief_params(chain.source, distill=BRIEF | {"method": "team"})
    with pytest.raises(UserError, match=r"needs two teachers, and .* holds none"):
        distill_features.run(alone, **options | {"teacher": chain.root / "teacher"})
    assert not (tmp_path / "out").exists()
