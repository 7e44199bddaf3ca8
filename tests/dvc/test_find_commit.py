"""What a run depends on: which commit changed its pictures last, and which settings each stage reads."""

from pathlib import Path

import pytest
from pipeline import Project, fetch, find, head, url

from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params, restore_params
from dreamteacher.settings.recipes import of_recipe, of_teacher
from dreamteacher.stages.find_commit import FILES, SECTIONS, resolve


@pytest.fixture
def user(origin: Project, tmp_path: Path) -> Project:
    """A clone of `origin` that may push to a branch of its own."""
    found = Project(tmp_path / "user", Path(origin.environment["PATH"].split(":")[0]))
    origin.run("git", "clone", "-q", url(origin), str(found.folder))
    for command in ("config user.email a@b.c", "config user.name a", "config commit.gpgsign false", "checkout -qb work"):
        found.run("git", *command.split())
    return found


def push(user: Project, message: str) -> str:
    for command in (["add", "-A"], ["commit", "-qm", message], ["push", "-qf", "origin", "work"]):
        user.run("git", *command)
    return head(user)


def test_data_version_stays_until_the_pictures_change(origin: Project, user: Project):
    (user.folder / "README.md").write_text("mended")
    user.change("T: 50", "T: 60")
    commit = push(user, "no picture")
    for source in ("samples/nuclei", "data", "data/list.txt"):
        before, after = (find(url(origin), rev, f"ingest.source={source}") for rev in ("v1", "work"))
        assert (after.commit, after.data_version) == (commit, before.data_version), source
        assert after.data_version != after.commit


def test_data_version_of_a_picture_in_git_is_the_commit_that_changed_it(origin: Project, user: Project, tmp_path: Path):
    (user.folder / "samples/nuclei/more.png").write_bytes(b"more")
    changed = push(user, "more")
    (user.folder / "notes").touch()
    push(user, "notes")
    found, facts = fetch(origin, "work", tmp_path / "out")
    assert found.data_version == facts["revision"] == changed
    assert (tmp_path / "out/nuclei/more.png").read_bytes() == b"more"
    assert find(url(origin), "work", "ingest.source=pool/big").data_version == head(origin)


def test_data_version_of_pictures_in_dvc_is_the_commit_of_their_dvc_file(origin: Project, user: Project):
    user.run("dvc", "pull", "-q", "pool/big")
    (user.folder / "pool/big/c.png").write_bytes(b"c")
    user.run("dvc", "add", "-q", "pool/big")
    user.run("dvc", "push", "-q", "pool/big")
    changed = push(user, "c")
    for source in ("pool/big", "pool", "data/list.txt"):  # the list names a picture in pool/big
        assert find(url(origin), "work", f"ingest.source={source}").data_version == changed, source
    assert find(url(origin), "work").data_version != changed


def test_another_place_of_the_dvc_remote_fetches_again(origin: Project, user: Project):
    user.run("dvc", "remote", "add", "-q", "second", "s3://models/elsewhere")
    assert find(url(origin), "work" if push(user, "remote") else "").data_version == head(user)


def test_data_version_of_a_folder_is_that_of_its_files(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "params.yaml").write_text("ingest: {source: data}\n")
    (tmp_path / "data/a.png").write_bytes(b"a")
    first = find(str(tmp_path), "").data_version
    assert first.startswith(FILES)
    assert find(str(tmp_path), "", "distill.T=77").data_version == first
    (tmp_path / "data/a.png").write_bytes(b"ab")
    assert find(str(tmp_path), "").data_version != first


def test_each_step_gets_the_sections_that_it_reads_and_nothing_else(origin: Project):
    found = find(url(origin), "v1", "few_labels=null", "teacher.lr=0.5")
    assert {step: tuple(sections) for step, sections in found.settings.items()} == SECTIONS
    params = load_params(origin.folder / "params.yaml", ["few_labels=null", "teacher.lr=0.5"])
    for step, settings in found.settings.items():
        assert restore_params(**settings).section(*SECTIONS[step]) == params.section(*SECTIONS[step])
    assert "None" not in str(found.settings)


def test_a_step_gets_what_its_teacher_or_recipe_changes_and_nothing_of_others(origin: Project):
    overrides = ["teachers.large={size: small, pretrained: null}", "recipes.noisy={teacher: large, student: {width: 16}, distill: {T: 9}}"]
    overrides += ["label_recipes.soft={features: noisy, labels: {tau: 2}}", "compare.inits=[scratch, features, soft]"]
    found, params = find(url(origin), "v1", *overrides), load_params(origin.folder / "params.yaml", overrides)
    assert [each["teacher"] for each in found.teachers] == ["own", "large"]
    assert found.teachers[0]["changes"] == {}
    large = restore_params(found.teachers[1]["changes"], **found.settings["train_teacher"])
    assert large.section("teacher") == of_teacher(params, "large").section("teacher")
    (noisy,) = found.recipes["large"]
    resolved = of_recipe(params, "soft")
    for step, changes in (("distill_features", noisy["distill"]), ("finetune", noisy["finetune"])):
        assert restore_params(changes, **found.settings[step]).section(*SECTIONS[step]) == resolved.section(*SECTIONS[step])
    assert noisy["finetune"] == {"student": {"width": 16}}
    assert found.passes["features"] == {"seeds": [0], "mixed": []}
    assert found.passes["noisy"]["seeds"] == []  # it is not compared itself
    (soft,) = found.passes["noisy"]["mixed"]
    assert restore_params(soft["labels"], **found.settings["distill_labels"]).section("labels", "distill") == resolved.section(
        "labels", "distill"
    )
    assert list(found.params.label_recipes) == ["soft"]


def test_what_is_compared_comes_from_the_settings_and_a_retraining_has_no_fresh_start(origin: Project):
    overrides = ["compare.inits=[scratch, imagenet, features, labels, mix]", "compare.seeds=[0, 3]"]
    overrides.append("label_recipes.labels={features: features, labels: {mode: labels}}")
    pretrain, retrain = (
        resolve(git_url=url(origin), data_rev="v1", overrides=overrides, pipeline=name) for name in ("pretrain", "retrain")
    )
    assert [(each["init"], each["seed"]) for each in pretrain.fresh] == [("scratch", 0), ("scratch", 3), ("imagenet", 0), ("imagenet", 3)]
    mixed = [(each["init"], each["seed"]) for each in pretrain.passes["features"]["mixed"]]
    assert mixed == [("labels", 0), ("labels", 3), ("mix", 0), ("mix", 3)]
    assert retrain.fresh == []
    assert retrain.settings["evaluate"]["compare"]["inits"] == ["features", "labels", "mix"]
    assert retrain.passes == pretrain.passes


@pytest.mark.parametrize(("inits", "fine_tuned"), [(["scratch", "features"], ([0], [])), (["mix"], ([], ["mix"]))])
def test_a_retraining_needs_one_recipe_of_either_kind(origin: Project, inits: list[str], fine_tuned: tuple[list, list]):
    overrides = ["label_recipes={}"] if "mix" not in inits else []
    overrides += [f"compare.inits=[{', '.join(inits)}]", "compare.seeds=[0]", f"export.init={inits[-1]}"]
    found = resolve(git_url=url(origin), data_rev="v1", overrides=overrides, pipeline="retrain")
    passes = found.passes["features"]
    assert (passes["seeds"], [each["init"] for each in passes["mixed"]]) == fine_tuned
    assert found.teachers == [{"teacher": found.teacher, "changes": {}}]
    assert found.recipes == {found.teacher: [{"recipe": "features", "distill": {}, "finetune": {}}]}


def test_a_retraining_continues_with_the_settings_of_its_recipe(origin: Project):
    overrides = ["teachers.large={size: small, pretrained: null}", "recipes.noisy={teacher: large, student: {width: 16}, distill: {T: 9}}"]
    overrides += ["compare.inits=[scratch, noisy]", "export.init=noisy"]
    found, params = (
        resolve(git_url=url(origin), data_rev="v1", overrides=overrides, pipeline="retrain"),
        of_recipe(load_params(origin.folder / "params.yaml", overrides), "noisy"),
    )
    ((teacher,), (noisy,)) = found.teachers, found.recipes["large"]
    for step, changes in (("train_teacher", teacher["changes"]), ("distill_features", noisy["distill"]), ("finetune", noisy["finetune"])):
        assert restore_params(changes, **found.settings[step]).section(*SECTIONS[step]) == params.section(*SECTIONS[step])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["compare.inits=[features, mix]"], "add scratch or imagenet$"),
        (["compare.inits=[scratch]", "export.init=scratch"], "add a recipe$"),
        (["recipes.team={teacher: ., distill: {method: team}}", "compare.inits=[scratch, team, features]"], "learns from all teachers"),
        ([{"a": 1}], "is no text; write it as"),
    ],
)
def test_a_comparison_that_a_pipeline_cannot_make_is_refused(origin: Project, overrides: list, said: str):
    with pytest.raises(UserError, match=said):
        find(url(origin), "v1", *overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["compare.inits=[scratch]", "export.init=scratch"], "compares recipes; add a recipe$"),
        (["compare.inits=[scratch, features]", "export.init=scratch"], "trains no model from scratch; export one of features$"),
        (["recipes.noisy={teacher: own, distill: {T: 9}}", "compare.inits=[features, noisy, mix]"], "needs the recipes features, noisy"),
        (
            ["recipes.alone={teacher: none, distill: {method: simclr}}", "compare.inits=[alone]", "export.init=alone"],
            "no teacher of its own",
        ),
    ],
)
def test_a_retraining_that_no_champion_can_begin_is_refused(origin: Project, overrides: list[str], said: str):
    with pytest.raises(UserError, match=said):
        resolve(git_url=url(origin), data_rev="v1", overrides=overrides, pipeline="retrain")
