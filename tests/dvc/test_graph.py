"""Which stages of the real dvc.yaml are rerun after a change."""

import json
import shutil

import yaml
from dvc.repo import Repo

from dreamteacher import cli
from dreamteacher.settings.schema import Params
from dreamteacher.settings.table import known_keys
from helpers import PROJECT

TEACHER, FEATURES = "train-teacher --name own", "distill-features --recipe features"
INTERPRETER, MIX = "train-interpreter --recipe mix --seed 0", "distill-labels --recipe mix --seed 0"
AFTER_FINETUNE = ["evaluate", "export-onnx", "publish", "report"]


def test_chain_runs_every_stage_once(project):
    assert project.first == sorted(
        ["ingest", TEACHER, FEATURES, INTERPRETER, MIX,
         "finetune --init scratch --seed 0", "finetune --init features --seed 0", "finetune --init mix --seed 0", *AFTER_FINETUNE]
    )  # fmt: skip


def test_the_shipped_settings_make_a_graph_of_two_teachers_without_label_recipes(tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(PROJECT / name, tmp_path / name)
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        named = {stage.name for stage in repo.index.stages}
    ran = {name for name in named if name.partition("@")[0] not in ("nothing", "no-teacher")}  # empty folders that stand for no input
    assert ran == {
        "ingest", "train-teacher@own", "train-teacher@random", "distill-features@features", "distill-features@random-teacher",
        *(f"finetune@{init}-{seed}" for init in ("scratch", "random-teacher", "features") for seed in range(4)), *AFTER_FINETUNE,
    }  # fmt: skip


def test_second_start_runs_nothing(project):
    assert project.repro() == []
    assert "up to date" in project.run("dvc", "status")


def test_touching_the_finetune_rate_reruns_finetune_and_what_follows(clean):
    (clean.folder / "ran.log").unlink(missing_ok=True)
    clean.run("dvc", "exp", "run", "-q", "-S", "finetune.lr=0.0123")
    ran = sorted((clean.folder / "ran.log").read_text().splitlines())
    assert ran == sorted([*(f"finetune --init {init} --seed 0" for init in ("scratch", "features", "mix")), *AFTER_FINETUNE])
    assert json.loads((clean.folder / "metrics/evaluate.json").read_text()) == {"mix": {"miou_mean": 0.0123}}
    assert "0.0123" in clean.run("dvc", "metrics", "diff")


def test_touching_distillation_leaves_scratch_and_teacher_alone(clean):
    settings = yaml.safe_load((clean.folder / "params.yaml").read_text())
    settings["distill"]["T"] = 77
    (clean.folder / "params.yaml").write_text(yaml.safe_dump(settings))
    assert clean.repro() == sorted(  # and the interpreter, which reads the teacher alone
        [FEATURES, MIX, "finetune --init features --seed 0", "finetune --init mix --seed 0",
         *AFTER_FINETUNE]
    )  # fmt: skip


def test_another_size_of_the_teacher_reruns_all_that_takes_its_settings_from_it(clean):
    clean.change("size: tiny", "size: small")
    assert clean.repro() == sorted(
        [TEACHER, FEATURES, INTERPRETER, MIX,
         "finetune --init features --seed 0", "finetune --init mix --seed 0", *AFTER_FINETUNE]
    )  # fmt: skip


def test_another_size_of_the_exported_example_exports_again(clean):
    clean.change("size: 128", "size: 160")
    assert clean.repro() == ["export-onnx", "publish"]


def test_one_seed_more_runs_only_that_seed(clean):
    clean.change("seeds: [0]", "seeds: [0, 1]")
    ran = clean.repro()
    assert "train-interpreter --recipe mix --seed 1" in ran
    assert "finetune --init scratch --seed 1" in ran
    # finetune from mix depends on all of artifacts/backbones/mix, which has a new seed in it: the one price of INIT as a dependency
    assert [command for command in ran if command.endswith("--seed 0")] == ["finetune --init mix --seed 0"]


def test_one_recipe_more_runs_itself_and_what_compares_it(clean):
    clean.change("  features: {teacher: own}", "  features: {teacher: own}\n  noisy: {teacher: own, distill: {T: 250}}")
    assert clean.repro() == sorted(["distill-features --recipe noisy", "evaluate", "publish", "report"])
    clean.change("inits: [scratch, features, mix]", "inits: [scratch, features, mix, noisy]")
    assert clean.repro() == sorted(["finetune --init noisy --seed 0", "evaluate", "publish", "report"])
    assert json.loads((clean.folder / "artifacts/backbones/noisy/stage.json").read_text())["params"]["distill"]["T"] == 250


def test_one_teacher_more_runs_itself_and_its_recipe(clean):
    clean.change("  own: {}", "  own: {}\n  edm: {kind: edm, size: tiny, pretrained: null}")
    clean.change("  features: {teacher: own}", "  features: {teacher: own}\n  karras: {teacher: edm}")
    assert clean.repro() == sorted(["train-teacher --name edm", "distill-features --recipe karras", "evaluate", "publish", "report"])


def test_a_recipe_without_a_teacher_waits_for_none(clean):
    clean.change("  features: {teacher: own}", "  features: {teacher: own}\n  simclr: {teacher: none, distill: {method: simclr}}")
    assert clean.repro() == sorted(["distill-features --recipe simclr", "evaluate", "publish", "report"])
    clean.change("pretrained: nuclei", "pretrained: null")
    assert "distill-features --recipe simclr" not in clean.repro()


def test_one_label_recipe_more_runs_its_own_interpreter(clean):
    clean.change("  mix: {features: features}", "  mix: {features: features}\n  labels: {features: features, labels: {mode: labels}}")
    assert clean.repro() == sorted(
        ["train-interpreter --recipe labels --seed 0", "distill-labels --recipe labels --seed 0", "evaluate", "publish", "report"]
    )


def test_what_differs_in_one_recipe_runs_that_one_again(clean):
    clean.change("  mix: {features: features}", "  mix: {features: features, labels: {tau: 2}}")
    assert clean.repro() == sorted(
        [INTERPRETER, MIX, "finetune --init mix --seed 0", "evaluate", "publish", "report"]
    )  # features are served


def test_what_a_server_leaves_in_its_repository_changes_no_output(clean):
    """Triton's Python writes __pycache__ beside the models, whatever its environment says."""
    cache = clean.folder / "artifacts/triton/__pycache__/model.pyc"
    cache.parent.mkdir()
    cache.touch()
    assert "up to date" in clean.run("dvc", "status")
    assert clean.repro() == []


def test_plots_are_drawn(project):
    output = project.run("dvc", "plots", "show")
    assert "failed" not in output and "could not find" not in output
    page = (project.folder / "dvc_plots/index.html").read_text()
    for title in ("loss", "explained_variance"):
        assert f'"{title}"' in page


def test_every_stage_is_in_the_graph_with_settings_that_exist():
    graph, settings = (yaml.safe_load((PROJECT / name).read_text()) for name in ("dvc.yaml", "params.yaml"))
    assert set(graph["stages"]) == {*cli.STAGES, "nothing", "no-teacher", "features-of"}
    for name, stage in graph["stages"].items():
        for key in stage.get("do", stage).get("params", []):
            group, _, setting = key.partition(".")
            assert group in Params.model_fields, name
            assert group in settings, f"{group} must be in params.yaml: DVC knows no defaults"
            assert not setting or "$" in setting or setting in settings[group], f"{key} must be in params.yaml: DVC knows no defaults"


def test_no_setting_that_the_run_cache_passes_over_goes_unwatched():
    """DVC's run cache leaves out of its key what is called `size` or `nfiles` within a group of settings."""
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"].values()
    watched = {key for stage in stages for key in stage.get("do", stage).get("params", [])}
    skipped = {key for key in known_keys() if key.split(".")[-1] in ("size", "nfiles")}
    assert skipped == {"teacher.size", "export.size"}
    assert skipped <= watched


def test_dvc_sends_no_analytics():
    config = (PROJECT / ".dvc/config").read_text()
    for setting in ("analytics = false", "autostage = false", "check_update = false"):
        assert setting in config
