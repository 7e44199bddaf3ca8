"""params.yaml and --set."""

import pytest
import yaml
from given_settings import loaded, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params
from dreamteacher.settings.schema import Params
from dreamteacher.settings.table import known_keys
from helpers import PROJECT


def test_a_table_of_the_file_is_whole_and_set_changes_one_entry(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("distill: {objectives: {cosine: 0.9, smooth_l1: 0.1}}\n")
    assert load_params(file).distill.objectives == {"cosine": 0.9, "smooth_l1": 0.1}
    assert load_params(file, ["distill.objectives.relational=2"]).distill.objectives == {"cosine": 0.9, "smooth_l1": 0.1, "relational": 2}
    assert loaded("distill.objectives.at=5").distill.objectives == {"mse": 1, "at": 5}
    assert loaded("distill.objectives.at=5", "distill.objectives.cosine=1").distill.objectives == {"mse": 1, "at": 5, "cosine": 1}
    assert loaded().distill.objectives == {"mse": 1, "at": 10}


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
        ("ingest:\n  val_fraction: 0.1\n  val_fraction: 0.2\n", "'val_fraction' appears twice, line 3"),
        ("ingest:\n  val_fraction: 0.3\nteacher:\n  steps: 5\ningest:\n  short_side: 128\n", "'ingest' appears twice, line 5"),
        ("teacher:\n  steps: 0100\n", "0100 is read differently by other programs"),
        ("teacher:\n  steps: 1:30\n", "1:30 is read differently by other programs"),
        ("teacher:\n  steps: on\n", "teacher.steps = True is not possible: true and false"),
        ("ingest:\n  labels: no\n", "ingest.labels = False is not possible: true and false"),
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


def test_in_a_subfolder_of_a_project_the_project_is_named_instead_of_using_defaults(tmp_path, monkeypatch):
    project = tmp_path / "my project"
    (project / "notebooks/old").mkdir(parents=True)
    (project / "params.yaml").write_text("few_labels: 5\n")
    monkeypatch.chdir(project / "notebooks/old")
    assert load_params() == Params(), "a params.yaml alone makes no project"
    (project / "dvc.yaml").touch()
    with pytest.raises(UserError, match=rf"no params.yaml of its own; change to the project: cd '{project}'"):
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


def test_broken_yaml_is_named_with_its_line(in_tmp):
    (in_tmp / "params.yaml").write_text("few_labels: 3\ndistill: {T: 5\n")
    with pytest.raises(UserError, match=r"params.yaml is not valid YAML: .*, line 3$"):
        load_params()
