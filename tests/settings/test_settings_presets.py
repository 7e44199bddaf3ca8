"""Defaults from teacher.size and presets."""

import pytest
from given_settings import loaded

from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params
from dreamteacher.settings.presets import LEVELS, PRESETS
from dreamteacher.settings.pretraining import Teacher
from dreamteacher.settings.recipes import of_recipe
from dreamteacher.settings.schema import Params
from helpers import NUCLEI, PROJECT

DEMO = {"teacher": (64, 32, 1, 1e-3, 4500, 0.999), "distill": (64, 32, 1, 2e-3, 150, None), "interpreter": (64, 16, 1, 2e-3, 100, None)}
SIZES = {
    "tiny": DEMO,
    "mini": {**DEMO, "teacher": (64, 256, 1, 5e-4, 20_000, 0.9995), "distill": (64, 64, 1, 2e-3, 4000, None)},
    "small": {**DEMO, "teacher": (64, 128, 1, 1e-4, 100_000, 0.9999), "distill": (64, 64, 1, 1e-3, 10_000, None)},
    "adm-256": {
        "teacher": (256, 256, 16, 1e-4, 80_000, 0.9999),
        "distill": (256, 256, 8, 1e-3, 55_000, None),
        "interpreter": (256, *DEMO["interpreter"][1:]),
    },
}


@pytest.mark.parametrize("size", SIZES)
def test_the_projects_file_is_a_whole_configuration_of_each_size(size):
    """`tiny` has the defaults."""
    params = load_params(NUCLEI, [f"teacher.size={size}"])
    for name, values in SIZES[size].items():
        group = getattr(params, name)
        assert (group.resolution, group.batch_size, group.accumulate, group.lr, group.steps, group.ema) == values
    assert params.taps == "auto"
    # what does not depend on the generator stays
    assert params.model_copy(update={n: getattr(Params(), n) for n in DEMO}) == load_params(NUCLEI).model_copy(
        update={n: getattr(Params(), n) for n in DEMO}
    )


def test_what_is_set_wins_over_the_size():
    params = loaded("teacher.size=adm-256", "teacher.lr=3e-4", "distill.resolution=64", "teacher.accumulate=1")
    assert (params.teacher.lr, params.teacher.batch_size, params.teacher.accumulate, params.distill.resolution) == (3e-4, 256, 1, 64)


def test_a_size_set_in_python_means_the_same():
    assert Params(teacher={"size": "small"}) == loaded("teacher.size=small")
    assert Params(teacher=Teacher(size="small", steps=3)).teacher.resolution == 64


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_presets_values_are_possible_at_every_size(preset: str) -> None:
    for size in LEVELS:
        params = Params(preset=preset, teacher={"size": size})
        assert Params.model_validate(params.model_dump()) == params
        for group, values in PRESETS[preset].items():
            for name, value in values.items():
                if name != "size":
                    assert getattr(getattr(params, group), name) == value, f"{group}.{name}"


def test_a_line_wins_over_the_preset_and_the_preset_over_kind_and_size() -> None:
    paper = Params(preset="paper")
    assert (paper.teacher.size, paper.teacher.batch_size, paper.distill.resolution) == ("adm-256", 256, 256)
    assert (paper.distill.lr, paper.distill.steps, paper.distill.warmup_steps) == (4e-3, 164_000, 8_200)
    small = Params(preset="paper", teacher={"size": "small"}, distill={"T": 150, "lr": 1e-4})
    assert (small.distill.T, small.distill.lr, small.distill.steps, small.student.width) == (150, 1e-4, 10_000, 256)
    assert Params().distill == Params(preset="demo").distill


def test_a_recipe_changes_what_the_preset_fills() -> None:
    params = load_params(
        None, ["preset=best", "teachers.ddpm={kind: ddpm}", "recipes.paper={teacher: ddpm, distill: {whitening: layernorm}}"]
    )
    assert of_recipe(params, "features").teacher.kind == "edm"
    recipe = of_recipe(params, "paper")
    assert (recipe.teacher.kind, recipe.distill.whitening, recipe.distill.encoding) == ("ddpm", "layernorm", "stratified")


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match="preset = 'papre' is not possible"):
        load_params(None, ["preset=papre"])


def test_the_papers_values_are_documented() -> None:
    """Each in the table of docs/recipes.md, with its place in the paper."""
    text = (PROJECT / "docs/recipes.md").read_text()
    for preset in ("paper", "best"):
        for group, values in PRESETS[preset].items():
            for name in values:
                assert f"`{group}.{name}`" in text, f"{preset}: {group}.{name}"
