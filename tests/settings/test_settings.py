"""Validation of settings, single and combined, and their descriptions."""

import json

import pytest
from given_settings import loaded, refusal

from dreamteacher.settings.schema import Params
from dreamteacher.settings.table import describe, known_keys, markdown


@pytest.mark.parametrize(
    ("override", "meant"),
    [("distil.T=5", "distill.T"), ("distill.lrr=1", "distill.lr"), ("few_label=3", "few_labels"), ("finetune.step=3", "finetune.steps"),
     ("Teacher.steps=3", "teacher.steps"), ("lr=1", "teacher.lr"), ("fine-tune.lr=1", "finetune.lr"),
     ("compare.seeds[0]=3", "compare.seeds")],
)  # fmt: skip
def test_unknown_setting_names_the_nearest_known_one(override, meant):
    assert f"unknown setting {override.split('=')[0]!r}; did you mean {meant!r}?" in refusal(override)


def test_unknown_setting_that_resembles_nothing_lists_the_known_ones():
    assert "known: preset, seed, few_labels" in refusal("zzzzzzzz=1")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.whitening=zca", "'layernorm', 'standardize' or 'phi-s'"),
        ("teacher.steps=0", "greater than 0"),
        ("teacher.steps=many", "valid integer"),
        ("teacher.ema=1", "less than 1"),
        ("export.size=100", "multiple of 32"),
        ("export.opset=19", "17 or 18"),
        ("publish.name=no spaces", "write letters a to z, digits, - and _, beginning with a letter, such as cells-2"),
        ("distill.lr=.inf", "finite"),
        ("distill.lr=.nan", "finite"),
        (
            "compare.inits=[scratch, featurs]",
            "'featurs' is not among scratch, imagenet, recipes or label_recipes; did you mean 'features'?",
        ),
        ("compare.inits=[scratch, magic]", "there are ['scratch', 'imagenet', 'features', 'mix']"),
        ("recipes.features.teacher=gan", "recipes.features.teacher = 'gan' is not among teachers; there are ['own']"),
        ("label_recipes.mix.features=feature", "label_recipes.mix.features = 'feature' is not among recipes; did you mean 'features'?"),
        ("teachers.own.kind=stylegan2", "label_recipes.mix builds on a teacher of kind 'stylegan2', which cannot encode labelled pictures"),
        ("teachers.none={}", "teachers.none: in recipes this name means no teacher"),
        ("label_recipes.features={features: features}", "'features' names two initialisations"),
        ("recipes.scratch={teacher: own}", "'scratch' names two initialisations"),
        (
            "recipes.wide={teacher: own, student: {widht: 3}}",
            "recipes.wide: unknown setting 'student.widht'; did you mean 'student.width'?",
        ),
        ("recipes.noisy={teacher: own, distill: {T: 1000}}", "recipes.noisy: distill.T = 1000 must be below teacher.T_train = 1000"),
        ("label_recipes.mix.labels.tau=0", "label_recipes.mix: labels.tau = 0 is not possible: Input should be greater than 0"),
        ("teachers.own.steps=0", "teachers.own: teacher.steps = 0 is not possible"),
        ("teachers={}", "at least 1 item"),
        ("recipes.Big={teacher: own}", "write small letters a to z, digits, - and _, beginning with a letter, such as cells-2"),
        ("recipes.wide={taps: auto}", "recipes.wide.teacher is missing, and has no default"),
        ("taps=some", "taps = 'some' is not possible: Input should be a valid list, or Input should be 'auto'"),
        ("finetune.lr=on", "finetune.lr = True is not possible: true and false"),
        ("compare.seeds=[]", "at least 1 item"),
        ("distill=3", "valid dictionary"),
        ("export.seed=7", "among compare.seeds = [0, 1, 2]"),
        ("compare.inits=[scratch]", "export.init = 'mix' is not among compare.inits; there are ['scratch']"),
        ("compare.seeds=[0, 0]", "twice"),
        ("compare.seeds=[0, -1]", "compare.seeds.1 = -1 is not possible"),
        ("distill.objectives={mze: 1}", "there is no term 'mze'; name mse"),
        ("distill.objectives.at=-1", "distill.objectives.at = -1 is not possible"),
        ("distill.objectives={}", "at least 1 item"),
        ("distill.objectives={mse: 0}", "at least one term needs a weight above 0"),
        ("distill.encoding=dreams", "'stochastic', 'ddim', 'stratified' or 'dream'"),
        ("interpreter.encoding=dream", "'stochastic', 'ddim' or 'stratified'"),
        ("distill.strata=[10, 5]", "boundaries must increase"),
        ("distill.strata=[10]", "at least 2 items"),
        ("distill.T=1000", "must be below teacher.T_train = 1000"),
        ("teacher.resolution=36", "teacher.resolution = 36 does not fit teacher.size = 'tiny': set a multiple of 16"),
        ("distill.resolution=40", "distill.resolution = 40 does not fit teacher.size = 'tiny': set a multiple of 16"),
        ("interpreter.resolution=8", "interpreter.resolution = 8 does not fit teacher.size = 'tiny': set a multiple of 16"),
        (
            "distill.margin=17",
            "distill.margin = 17 leaves less than 2 x 2 of the 4 x 4 cells at stride 16; lower it to 16",
        ),
        ("distill.margin=-1", "greater than or equal to 0"),
        ("taps=[4, 32]", "teacher.size = 'tiny' has no decoder level at stride 32; choose from [1, 2, 4, 8, 16], or set auto"),
    ],
)
def test_impossible_value_says_what_is_possible(override, words):
    assert words in refusal(override)


def test_strata_and_T_are_checked_only_for_the_encoding_that_uses_them():
    assert "interpreter.strata = [10, 2000] must end at teacher.T_train = 1000" in refusal(
        "interpreter.encoding=stratified", "interpreter.strata=[10, 2000]"
    )
    assert loaded("interpreter.strata=[10, 2000]").interpreter.strata == [10, 2000]
    assert loaded("distill.encoding=stratified", "distill.strata=[10, 1000]", "distill.T=5000").distill.T == 5000


def test_a_setting_that_has_moved_is_named_with_its_new_place():
    line = "distill.at_weight is now part of another setting; write distill.objectives: {mse: 1, at: 5}"
    assert line in refusal("distill.at_weight=5")


def test_taps_are_checked_against_the_size_before_anything_is_computed():
    assert "taps = [2, 4, 8, 16]: teacher.size = 'small' has no decoder level at stride 16" in refusal(
        "teacher.size=small", "taps=[2,4,8,16]"
    )


def test_the_margin_may_take_all_but_two_cells_of_the_coarsest_tap():
    assert loaded("distill.margin=16").distill.margin == 16
    assert loaded("distill.margin=24", "taps=[2, 8]").distill.margin == 24
    assert "lower it to 24," in refusal("distill.margin=25", "taps=[2, 8]")
    assert loaded("distill.margin=96", "teacher.size=adm-256").distill.margin == 96  # its coarsest tap is 32, of 256 px
    assert "of the 1 x 1 cells at stride 16; lower it to 0" in refusal("distill.margin=1", "distill.resolution=16")


@pytest.mark.parametrize("augment", ["no-flip", "none"])
def test_where_mirrored_labels_are_untrue_the_interpreter_learns_none(augment):
    with pytest.raises(ValueError, match=f"finetune.augment = '{augment}' says .* set interpreter.mirror = false"):
        Params(finetune={"augment": augment})
    assert not Params(finetune={"augment": augment}, interpreter={"mirror": False}).interpreter.mirror


def test_every_setting_is_described_with_its_values():
    rows = describe()
    assert len({name for name, _, _ in rows}) == len(rows) > 90
    for name, values, field in rows:
        assert values, name
        assert field.description, name
    words = {name: values for name, values, _ in rows}
    assert words["distill.betas"] == "tuple of float >= 0, <= 1"
    assert words["few_labels"] == "int > 0 or null"
    assert words["distill.workers"] == "int >= 0 or auto"
    assert words["distill.whitening"] == "layernorm, standardize, phi-s"
    assert words["distill.objectives"] == "table of float >= 0 of length >= 1"


def test_documented_table_has_every_setting():
    table = markdown()
    for name in known_keys():
        assert f"| `{name}` |" in table
    assert len(table.splitlines()) == len(known_keys()) + 2


def test_imported_kinds_are_checked_against_their_folder_and_not_against_teacher_size() -> None:
    """A latent diffusion model has another number of noise steps, and taps at strides 8 to 64."""
    foreign = {"taps": [8, 64], "distill": {"T": 1200, "resolution": 192}}
    assert Params(teacher={"kind": "diffusers"}, **foreign).taps == [8, 64]
    with pytest.raises(ValueError, match=r"distill\.T = 1200 must be below teacher\.T_train = 1000"):
        Params(teacher={"kind": "edm"}, **foreign)


def test_a_gan_whose_loss_has_second_derivatives_is_not_compiled():
    assert "teacher.compile = true: torch.compile cannot differentiate a stylegan2 twice" in refusal(
        "teacher.kind=stylegan2", "teacher.compile=true", "teacher.pretrained=null"
    )
    assert loaded("teacher.kind=edm", "teacher.compile=true", "teacher.pretrained=null").teacher.compile


def test_no_setting_has_a_regular_expression_that_its_message_would_show():
    assert '"pattern"' not in json.dumps(Params.model_json_schema())


@pytest.mark.parametrize("override", ["seed=4294967296", "seed=-1", "compare.seeds=[4294967296]"])
def test_seeds_that_the_generators_refuse_are_refused_before_any_stage(override: str) -> None:
    assert "is not possible: Input should be" in refusal(override)
