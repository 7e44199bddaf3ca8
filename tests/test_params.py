import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params
from dreamteacher.settings.presets import LEVELS, NAMED, ShareOf
from dreamteacher.settings.pretraining import Teacher
from dreamteacher.settings.recipes import of_recipe
from dreamteacher.settings.schema import Params
from dreamteacher.settings.table import describe, known_keys, markdown
from helpers import PROJECT


def loaded(*overrides: str) -> Params:
    return load_params(None, list(overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        loaded(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "meant"),
    [("distil.T=5", "distill.T"), ("distill.lrr=1", "distill.lr"), ("few_label=3", "few_labels"), ("finetune.step=3", "finetune.steps"),
     ("Teacher.steps=3", "teacher.steps"), ("lr=1", "teacher.lr")],
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
        ("publish.name=no spaces", "pattern"),
        ("distill.lr=.inf", "finite"),
        ("distill.lr=.nan", "finite"),
        (
            "compare.inits=[scratch, featurs]",
            "'featurs' is not among scratch, imagenet, recipes or label_recipes; did you mean 'features'?",
        ),
        ("compare.inits=[scratch, magic]", "there are ['scratch', 'imagenet', 'features', 'mix']"),
        ("recipes.features.teacher=gan", "recipes.features.teacher = 'gan' is not among teachers; there are ['own']"),
        ("label_recipes.mix.features=feature", "label_recipes.mix.features = 'feature' is not among recipes; did you mean 'features'?"),
        ("teachers.own.kind=stylegan2", "label_recipes.mix builds on a teacher of kind 'stylegan2', which makes pictures of its own"),
        ("teachers.none={}", "teachers.none stands for no teacher in recipes"),
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
        ("recipes.Big={teacher: own}", "should match pattern"),
        ("compare.seeds=[]", "at least 1 item"),
        ("distill=3", "valid dictionary"),
        ("export.seed=7", "among compare.seeds = [0, 1, 2]"),
        ("compare.inits=[scratch]", "export.init = 'mix' is not among compare.inits; there are ['scratch']"),
        ("compare.seeds=[0, 0]", "twice"),
        ("distill.objectives={mze: 1}", "there is no term 'mze'; name mse"),
        ("distill.objectives.at=-1", "distill.objectives.at = -1 is not possible"),
        ("distill.objectives={}", "at least 1 item"),
        ("distill.objectives={mse: 0}", "one term at least needs a weight above 0"),
        ("distill.encoding=dreams", "'stochastic', 'ddim', 'stratified' or 'dream'"),
        ("interpreter.encoding=dream", "'stochastic', 'ddim' or 'stratified'"),
        ("distill.strata=[10, 5]", "the edges must grow"),
        ("distill.strata=[10]", "at least 2 items"),
        ("distill.T=1000", "must be below teacher.T_train = 1000"),
        ("teacher.resolution=36", "teacher.resolution = 36 does not fit teacher.size = 'tiny': take a multiple of 16"),
        ("distill.resolution=40", "distill.resolution = 40 does not fit teacher.size = 'tiny': take a multiple of 16"),
        ("interpreter.resolution=8", "interpreter.resolution = 8 does not fit teacher.size = 'tiny': take a multiple of 16"),
        (
            "distill.margin=17",
            "distill.margin = 17 leaves less than 2 x 2 of the 4 x 4 cells at stride 16; lower it to 16",
        ),
        ("distill.margin=-1", "greater than or equal to 0"),
        ("taps=[4, 32]", "teacher.size = 'tiny' has no decoder level at stride 32; take some of [1, 2, 4, 8, 16], or auto"),
    ],
)
def test_impossible_value_says_what_is_possible(override, words):
    assert words in refusal(override)


def test_strata_are_held_against_the_schedule_where_they_count_and_T_where_it_does():
    assert "interpreter.strata = [10, 2000] must end at teacher.T_train = 1000" in refusal(
        "interpreter.encoding=stratified", "interpreter.strata=[10, 2000]"
    )
    assert loaded("interpreter.strata=[10, 2000]").interpreter.strata == [10, 2000]
    assert loaded("distill.encoding=stratified", "distill.strata=[10, 1000]", "distill.T=5000").distill.T == 5000


def test_a_table_of_the_file_is_whole_and_set_changes_one_entry(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("distill: {objectives: {cosine: 0.9, smooth_l1: 0.1}}\n")
    assert load_params(file).distill.objectives == {"cosine": 0.9, "smooth_l1": 0.1}
    assert load_params(file, ["distill.objectives.relational=2"]).distill.objectives == {"cosine": 0.9, "smooth_l1": 0.1, "relational": 2}
    assert loaded("distill.objectives.at=5").distill.objectives == {"mse": 1, "at": 5}
    assert loaded("distill.objectives.at=5", "distill.objectives.cosine=1").distill.objectives == {"mse": 1, "at": 5, "cosine": 1}
    assert loaded().distill.objectives == {"mse": 1, "at": 10}


def test_a_setting_that_has_moved_is_named_with_its_new_place():
    line = "distill.at_weight is now part of another setting; write distill.objectives: {mse: 1, at: 5}"
    assert line in refusal("distill.at_weight=5")


def test_taps_are_held_against_the_size_before_anything_is_computed():
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
    with pytest.raises(ValueError, match=f"finetune.augment = '{augment}' means .* set interpreter.mirror = false"):
        Params(finetune={"augment": augment})
    assert not Params(finetune={"augment": augment}, interpreter={"mirror": False}).interpreter.mirror


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
    """`tiny` is the demo, whose figures are committed."""
    params = load_params(PROJECT / "params.yaml", [f"teacher.size={size}"])
    for name, values in SIZES[size].items():
        group = getattr(params, name)
        assert (group.resolution, group.batch_size, group.accumulate, group.lr, group.steps, group.ema) == values
    assert params.taps == "auto"
    # what does not depend on the generator stays
    assert params.model_copy(update={n: getattr(Params(), n) for n in DEMO}) == load_params(PROJECT / "params.yaml").model_copy(
        update={n: getattr(Params(), n) for n in DEMO}
    )


def test_what_is_set_wins_over_the_size():
    params = loaded("teacher.size=adm-256", "teacher.lr=3e-4", "distill.resolution=64", "teacher.accumulate=1")
    assert (params.teacher.lr, params.teacher.batch_size, params.teacher.accumulate, params.distill.resolution) == (3e-4, 256, 1, 64)


def test_a_size_set_in_python_means_the_same():
    assert Params(teacher={"size": "small"}) == loaded("teacher.size=small")
    assert Params(teacher=Teacher(size="small", steps=3)).teacher.resolution == 64


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("distill.T=250", "distill.T", 250),
        ("distill.lr=1e-3", "distill.lr", 1e-3),
        ("distill.lr=2E+0", "distill.lr", 2.0),
        ("distill.clip=null", "distill.clip", None),
        ("few_labels=5", "few_labels", 5),
        ("compare.seeds=[3, 0]", "compare.seeds", [3, 0]),
        ("teacher.betas=[0.5, 0.9]", "teacher.betas", (0.5, 0.9)),
        ("ingest.source=s3://bucket/{000..010}.tar", "ingest.source", "s3://bucket/{000..010}.tar"),
        ("ingest.source='1e5'", "ingest.source", "1e5"),
        ("publish.gpu=true", "publish.gpu", True),
        (" distill.T =7", "distill.T", 7),
    ],
)
def test_set_reads_values_as_the_file_would(override, key, value):
    found = loaded(override)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    "override", ["", "distill.T", "=3", ".=3", "distill.=3", "seed.x=1", "distill.T=[", "few_labels=2020-13-45", "few_labels=0x_"]
)
def test_malformed_set_is_one_line(override):
    assert "--set" in refusal(override)


@settings(max_examples=300)
@given(st.lists(st.one_of(st.text(), st.builds("{}={}".format, st.sampled_from(known_keys()), st.text()), st.builds("{}={}".format, st.text(), st.text())), max_size=3))  # fmt: skip  # noqa: E501
def test_no_text_after_set_is_a_defect(overrides):
    try:
        assert isinstance(loaded(*overrides), Params)
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ingest:\n  val_fraction: 0.1\n  val_fraction: 0.2\n", "'val_fraction' is there twice, line 3"),
        ("ingest:\n  val_fraction: 0.3\nteacher:\n  steps: 5\ningest:\n  short_side: 128\n", "'ingest' is there twice, line 5"),
        ("teacher:\n  steps: 0100\n", "0100 means other numbers to other programs"),
        ("teacher:\n  steps: 1:30\n", "1:30 means other numbers to other programs"),
        ("teacher:\n  steps: on\n", "teacher.steps = True is not possible: Value error, true and false"),
        ("ingest:\n  labels: no\n", "ingest.labels = False is not possible: Value error, true and false"),
        (
            "ingest.val_fraction: 0.3\n",
            "'ingest.val_fraction' is one key; write the group 'ingest', and below it, indented, 'val_fraction'",
        ),
    ],
)
def test_what_yaml_would_read_as_something_else_is_refused(text, words, tmp_path):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_params(tmp_path / "params.yaml")
    assert words in str(error.value)
    assert load_params(PROJECT / "params.yaml", ["publish.gpu=yes", "teacher.steps=0x10"]).teacher.steps == 16


@pytest.mark.parametrize("text", ["[" * 5000, "&a [*a]", "&a {T: *a}"])
def test_pathological_yaml_is_refused(text):
    refusal(f"distill={text}")
    refusal(f"ingest.source={text}")


def test_file_and_set_together(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("few_labels: 5\ndistill: {T: 100, lr: 1e-4}\nteacher:\n")
    params = load_params(file, ["distill.T=200"])
    assert (params.few_labels, params.distill.T, params.distill.lr, params.teacher) == (5, 200, 1e-4, Params().teacher)


def test_default_file_may_be_missing_but_a_named_one_may_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_params() == Params()
    with pytest.raises(UserError, match=r"cannot read mine.yaml: No such file"):
        load_params(tmp_path.joinpath("mine.yaml").relative_to(tmp_path))


def test_below_a_project_its_settings_are_pointed_to_instead_of_the_defaults_taken(tmp_path, monkeypatch):
    project = tmp_path / "my project"
    (project / "notebooks/old").mkdir(parents=True)
    (project / "params.yaml").write_text("few_labels: 5\n")
    monkeypatch.chdir(project / "notebooks/old")
    assert load_params() == Params(), "a params.yaml alone makes no project"
    (project / "dvc.yaml").touch()
    with pytest.raises(UserError, match=rf"no params.yaml of its own; start from the project: cd '{project}'"):
        load_params()
    assert load_params(project / "params.yaml").few_labels == 5
    (project / "notebooks/old/params.yaml").write_text("few_labels: 7\n")
    assert load_params().few_labels == 7


@pytest.mark.parametrize("content", [b"a: [", b"- 1", b"\xff\xfe\x00", b"a: b: c", b"\x00"])
def test_broken_file_is_one_line_with_its_name(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"mine.yaml") as caught:
        load_params(file)
    assert "\n" not in str(caught.value)


def test_resolved_settings_are_a_settings_file(tmp_path):
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump(loaded("distill.T=7").model_dump(mode="json")))
    assert load_params(file) == loaded("distill.T=7")


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
    assert words["distill.objectives"] == "table of float >= 0 at least 1"


def test_documented_table_has_every_setting():
    table = markdown()
    for name in known_keys():
        assert f"| `{name}` |" in table
    assert len(table.splitlines()) == len(known_keys()) + 2


def test_broken_yaml_is_named_with_its_line(in_tmp):
    (in_tmp / "params.yaml").write_text("few_labels: 3\ndistill: {T: 5\n")
    with pytest.raises(UserError, match=r"params.yaml is not valid YAML: .*, line 3$"):
        load_params()


def test_of_kinds_that_are_imported_the_folder_says_what_fits_and_not_the_size() -> None:
    """Latent diffusion: noise steps of another schedule, taps at strides 8 to 64."""
    foreign = {"taps": [8, 64], "distill": {"T": 1200, "resolution": 192}}
    assert Params(teacher={"kind": "diffusers"}, **foreign).taps == [8, 64]
    with pytest.raises(ValueError, match=r"distill\.T = 1200 must be below teacher\.T_train = 1000"):
        Params(teacher={"kind": "edm"}, **foreign)


@pytest.mark.parametrize("preset", list(NAMED))
def test_a_presets_values_are_possible_at_every_size(preset: str) -> None:
    for size in LEVELS:
        params = Params(preset=preset, teacher={"size": size})
        assert Params.model_validate(params.model_dump()) == params
        for group, values in NAMED[preset].items():
            for name, value in values.items():
                if name != "size" and not isinstance(value, ShareOf):
                    assert getattr(getattr(params, group), name) == value, f"{group}.{name}"


def test_a_line_wins_over_the_preset_and_the_preset_over_kind_and_size() -> None:
    paper = Params(preset="paper")
    assert (paper.teacher.size, paper.teacher.batch_size, paper.distill.resolution) == ("adm-256", 256, 256)
    assert (paper.distill.lr, paper.distill.steps, paper.distill.warmup_steps) == (4e-3, 164_000, 8_200)
    small = Params(preset="paper", teacher={"size": "small"}, distill={"T": 150, "lr": 1e-4})
    assert (small.distill.T, small.distill.lr, small.distill.steps, small.student.width) == (150, 1e-4, 10_000, 256)
    assert Params().distill == Params(preset="demo").distill


def test_a_share_follows_what_it_is_of() -> None:
    assert Params(preset="best", finetune={"steps": 160}).finetune.head_steps == 40
    assert Params(preset="best", finetune={"steps": 160, "head_steps": 0}).finetune.head_steps == 0


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
        for group, values in NAMED[preset].items():
            for name in values:
                assert f"`{group}.{name}`" in text, f"{preset}: {group}.{name}"


def test_a_gan_whose_loss_has_second_derivatives_is_not_compiled():
    assert "teacher.compile = true: torch.compile cannot differentiate a stylegan2 twice" in refusal(
        "teacher.kind=stylegan2", "teacher.compile=true", "teacher.pretrained=null"
    )
    assert loaded("teacher.kind=edm", "teacher.compile=true", "teacher.pretrained=null").teacher.compile
