"""A run's outputs come back to git and DVC: a bare git repository and an S3 API, real git and DVC."""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import networkx
import pytest
import stand_in
import yaml
from dvc.repo import Repo
from pipeline import Project, find, head, url

from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params
from dreamteacher.stages import record
from dreamteacher.versioning import Clone
from forked import Forked

OVERRIDES = ["finetune.lr=0.0123", "publish.instances=3"]


@pytest.fixture(scope="module")
def outputs(project: Project, origin: Project, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The stage outputs of a run with OVERRIDES, as a cluster passes them: folders with meaningless names."""
    folder = tmp_path_factory.mktemp("run")
    work = shutil.copytree(project.folder, folder / "work", ignore=shutil.ignore_patterns("artifacts", "metrics", "plots"))
    record.save_overrides(work / "params.yaml", OVERRIDES)
    with Repo(str(work)) as repo:
        commands = [str(stage.cmd) for stage in networkx.dfs_postorder_nodes(repo.index.graph)]  # what a stage reads comes first
    for name, *words in map(str.split, commands):
        if name == "dreamteacher":
            step = Forked(partial(stand_in.main, words), work, origin.environment)
            assert step.wait() == 0, step.output
    stages = sorted(path.parent for path in (work / "artifacts").rglob("stage.json"))
    assert len(stages) == 12
    return [Path(shutil.copytree(stage, folder / "artifacts" / str(number))) for number, stage in enumerate(stages)]


@dataclass
class Recorded:
    """What record returned of a run of `commit`, a fresh clone of its branch with its outputs, and what DVC said when it reproduced it."""

    done: dict[str, str]
    commit: str
    clone: Project
    output: str


@pytest.fixture(scope="module")
def recorded(origin: Project, outputs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Of a run whose branch, `moving`, moved while it trained; its step was retried."""
    folder = tmp_path_factory.mktemp("recorded")
    tools = Path(origin.environment["PATH"].split(":")[0])
    other = Project(folder / "other", tools)
    origin.run("git", "clone", "-q", url(origin), str(other.folder))
    for command in (
        "config user.email a@b.c",
        "config user.name a",
        "config commit.gpgsign false",
        "checkout -qb moving",
        "push -q origin moving",
    ):
        other.run("git", *command.split())
    commit = find(url(origin), "moving").commit
    assert commit == head(other)
    (other.folder / "samples/nuclei/new.png").write_bytes(b"never trained on")
    for command in ("add -A", "commit -qm more", "push -q origin moving"):
        other.run("git", *command.split())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", "/proc")  # as a random user in a container finds it
        for _ in range(2):  # a retried step replaces its branch
            done = record.run(git_url=url(origin), commit=commit, overrides=OVERRIDES, outputs=outputs, run_id="abc")
    clone = Project(folder / "clone", tools)
    origin.run("git", "clone", "-q", "-b", done["branch"], url(origin), str(clone.folder))
    assert not (clone.folder / "artifacts").exists()
    clone.run("dvc", "pull", "-q")
    return Recorded(done, commit, clone, clone.run("dvc", "repro"))


def test_recorded_run_is_up_to_date_in_a_fresh_clone(recorded: Recorded, origin: Project):
    done, clone = recorded.done, recorded.clone
    assert done["branch"] == "runs/abc"
    assert clone.run("git", "rev-parse", "HEAD").strip() == done["commit"]
    assert clone.run("git", "rev-parse", "HEAD~1").strip() == recorded.commit == head(origin)
    assert "Data and pipelines are up to date" in recorded.output
    assert clone.run("git", "status", "--porcelain", "--untracked-files=no").strip() == ""
    assert (clone.folder / "artifacts/finetuned/mix/0/model.safetensors").read_text() == "finetune0"
    assert json.loads((clone.folder / "metrics/evaluate.json").read_text()) == {"mix": {"miou_mean": 0.0123}}
    settings = (clone.folder / "params.yaml").read_text()
    assert "# seed of teacher and feature distillation" in settings
    assert load_params(clone.folder / "params.yaml") == load_params(origin.folder / "params.yaml", OVERRIDES)
    assert set(clone.run("git", "diff", "--name-only", "HEAD~1").split()) == {"dvc.lock", "params.yaml", "metrics/evaluate.json"}
    assert "finetune.lr=0.0123" in clone.run("git", "log", "-1", "--format=%B")


def test_recipes_that_are_not_compared_are_left_to_dvc(origin: Project, outputs: list[Path], tmp_path: Path, caplog):
    more = ["teachers.edm={kind: edm, pretrained: null}", "recipes.noisy={teacher: edm}", "label_recipes.labels={features: noisy}"]
    done = record.run(git_url=url(origin), commit=head(origin), overrides=[*OVERRIDES, *more], outputs=outputs, run_id="more")
    for stage in ("train-teacher@edm", "distill-features@noisy", "features-of@labels", "distill-labels@labels-0"):
        assert f"stage {stage} of dvc.yaml is not recorded" in caplog.text
    clone = Project(tmp_path / "clone", Path(origin.environment["PATH"].split(":")[0]))
    origin.run("git", "clone", "-q", "-b", done["branch"], url(origin), str(clone.folder))
    clone.run("dvc", "pull", "-q", "--allow-missing")
    assert clone.repro() == sorted(
        ["train-teacher --name edm", "distill-features --recipe noisy", "train-interpreter --recipe labels --seed 0",
         "distill-labels --recipe labels --seed 0", "evaluate", "publish", "report"]
    )  # fmt: skip


def test_a_run_gets_no_pictures_of_a_branch_that_moved_meanwhile(recorded: Recorded, origin: Project):
    assert find(url(origin), "moving").commit != recorded.commit
    assert [path.name for path in (recorded.clone.folder / "samples/nuclei").iterdir()] == ["a.png"]
    assert "Data and pipelines are up to date" in recorded.output


def test_missing_and_foreign_outputs_are_refused(origin: Project, outputs: list[Path]):
    def recorded(outputs: list[Path], overrides: list[str]) -> None:
        record.run(git_url=url(origin), commit=head(origin), overrides=overrides, outputs=outputs, run_id="bad")

    lacking = [path for path in outputs if '"export-onnx"' not in (path / "stage.json").read_text()]
    with pytest.raises(UserError, match=r"the run has no output of export-onnx, which dvc.yaml has"):
        recorded(lacking, OVERRIDES)
    with pytest.raises(UserError, match=r"belongs to no stage of dvc.yaml"):
        recorded(outputs, ["compare.seeds=[1]", "export.seed=1"])
    assert "runs/bad" not in origin.run("git", "ls-remote", url(origin))


def test_no_command_of_the_repository_is_run_and_its_links_lead_nowhere(
    origin: Project, outputs: list[Path], tmp_path: Path, secret: Path, caplog
):
    other = Project(tmp_path / "other", Path(origin.environment["PATH"].split(":")[0]))
    origin.run("git", "clone", "-q", url(origin), str(other.folder))
    pipeline = other.folder / "dvc.yaml"
    theirs = f"  theirs:\n    cmd: echo $GIT_TOKEN > {tmp_path}/stolen; touch x\n    outs: [x]\n"
    pipeline.write_text(pipeline.read_text().replace("stages:\n", f"stages:\n{theirs}", 1))
    for command in ("config user.email a@b.c", "config user.name a", "add -A", "commit -qm theirs", "push -q origin HEAD:theirs"):
        other.run("git", *command.split())
    done = record.run(git_url=url(origin), commit=head(other), overrides=OVERRIDES, outputs=outputs, run_id="theirs")
    assert not (tmp_path / "stolen").exists()
    assert "stage theirs of dvc.yaml is not recorded" in caplog.text
    assert done["branch"] == "runs/theirs"
    (other.folder / "metrics").rename(other.folder / "old") if (other.folder / "metrics").exists() else None
    (other.folder / "metrics").symlink_to(secret)
    for command in ("add -A -f metrics", "commit -qm links", "push -q origin HEAD:theirs"):
        other.run("git", *command.split())
    with pytest.raises(UserError, match=r"metrics/evaluate\.json of git_url leads to .*secret/evaluate.json, out of the project"):
        record.run(git_url=url(origin), commit=head(other), overrides=OVERRIDES, outputs=outputs, run_id="links")
    assert [path.name for path in secret.iterdir()] == ["token.png"]


def test_project_without_a_remote_is_refused_before_anything_is_pushed(project: Project, outputs: list[Path], tmp_path: Path):
    bare = tmp_path / "bare.git"
    project.run("git", "clone", "-q", "--bare", str(project.folder), str(bare))
    config = Clone(bare.as_uri(), "HEAD", tmp_path / "look").folder / ".dvc/config"
    if "remote" in config.read_text():  # another test gave the project one
        pytest.skip("the project has a remote")
    with pytest.raises(UserError, match="no DVC remote for the outputs"):
        record.run(git_url=bare.as_uri(), commit="HEAD", overrides=OVERRIDES, outputs=outputs, run_id="x")


def test_overrides_are_written_as_they_are_read(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("# top\nfew_labels: 20  # labels\ndistill:\n  T: 50 # noise\ncompare:\n  inits: [scratch, mix]\n")
    overrides = ["few_labels=null", "distill.lr=1e-3", "compare.seeds=[0, 5]", "teacher.steps=7"]
    record.save_overrides(path, overrides)
    assert load_params(path).model_dump() == load_params(path, overrides).model_dump()
    text = path.read_text()
    for kept in ("# top", "# labels", "T: 50 # noise", "inits: [scratch, mix]"):
        assert kept in text
    assert yaml.safe_load(text)["distill"] == {"T": 50, "lr": 0.001}
    before = path.read_text()
    with pytest.raises(UserError):
        record.save_overrides(path, ["distill.lr=-1"])
    assert path.read_text() == before
