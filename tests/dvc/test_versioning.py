"""A data version reaches the cluster, and a run's outputs come back: a bare git repository and an S3 API, real git and DVC."""

import json
import os
import re
import shutil
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from pipeline import Project, fetch, find, head, url

from dreamteacher import outages
from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params
from dreamteacher.stages import fetch_data, record
from dreamteacher.versioning import Clone
from helpers import free_port

OVERRIDES = ["finetune.lr=0.0123", "publish.instances=3"]


@pytest.fixture(scope="module")
def outputs(project: Project, origin: Project, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The stage outputs of a run with OVERRIDES, as a cluster hands them over: folders whose names say nothing."""
    folder = tmp_path_factory.mktemp("run")
    elsewhere = Project(folder / "work", Path(origin.environment["PATH"].split(":")[0]))
    shutil.copytree(project.folder, elsewhere.folder)
    record.save_overrides(elsewhere.folder / "params.yaml", OVERRIDES)
    elsewhere.run("dvc", "repro", "-q")
    stages = sorted(path.parent for path in (elsewhere.folder / "artifacts").rglob("stage.json"))
    assert len(stages) == 11
    return [Path(shutil.copytree(stage, folder / "artifacts" / str(number))) for number, stage in enumerate(stages)]


def test_recorded_run_is_up_to_date_in_a_fresh_clone(origin: Project, outputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/proc")  # as a random user in a container finds it
    for _ in range(2):  # a retried step replaces its branch
        done = record.run(git_url=url(origin), commit=head(origin), overrides=OVERRIDES, outputs=outputs, run_id="abc")
    monkeypatch.undo()
    assert done["branch"] == "runs/abc"
    clone = Project(tmp_path / "clone", Path(origin.environment["PATH"].split(":")[0]))
    origin.run("git", "clone", "-q", "-b", "runs/abc", url(origin), str(clone.folder))
    assert clone.run("git", "rev-parse", "HEAD").strip() == done["commit"]
    assert clone.run("git", "rev-parse", "HEAD~1").strip() == head(origin)
    assert not (clone.folder / "artifacts").exists()
    clone.run("dvc", "pull", "-q")
    assert clone.repro() == []
    assert "up to date" in clone.run("dvc", "status")
    assert clone.run("git", "status", "--porcelain", "--untracked-files=no").strip() == ""
    assert (clone.folder / "artifacts/finetuned/mix/0/model.safetensors").read_text() == "finetune0"
    assert json.loads((clone.folder / "metrics/evaluate.json").read_text()) == {"mix": {"miou_mean": 0.0123}}
    settings = (clone.folder / "params.yaml").read_text()
    assert "# of teacher and feature distillation" in settings
    assert load_params(clone.folder / "params.yaml") == load_params(origin.folder / "params.yaml", OVERRIDES)
    assert set(clone.run("git", "diff", "--name-only", "HEAD~1").split()) == {"dvc.lock", "params.yaml", "metrics/evaluate.json"}
    assert "finetune.lr=0.0123" in clone.run("git", "log", "-1", "--format=%B")


def test_a_branch_that_moves_while_a_run_trains_lends_it_no_pictures(origin: Project, outputs: list[Path], tmp_path: Path):
    folder = tmp_path / "other"
    other = Project(folder, Path(origin.environment["PATH"].split(":")[0]))
    origin.run("git", "clone", "-q", url(origin), str(folder))
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
    (folder / "samples/nuclei/new.png").write_bytes(b"never trained on")
    for command in ("add -A", "commit -qm more", "push -q origin moving"):
        other.run("git", *command.split())
    record.run(git_url=url(origin), commit=commit, overrides=OVERRIDES, outputs=outputs, run_id="moved")
    clone = Project(tmp_path / "clone", Path(origin.environment["PATH"].split(":")[0]))
    origin.run("git", "clone", "-q", "-b", "runs/moved", url(origin), str(clone.folder))
    assert clone.run("git", "rev-parse", "HEAD~1").strip() == commit
    assert not (clone.folder / "samples/nuclei/new.png").exists()
    clone.run("dvc", "pull", "-q")
    assert clone.repro() == []


def test_missing_and_foreign_outputs_are_refused(origin: Project, outputs: list[Path]):
    def recorded(outputs: list[Path], overrides: list[str]) -> None:
        record.run(git_url=url(origin), commit=head(origin), overrides=overrides, outputs=outputs, run_id="bad")

    lacking = [path for path in outputs if '"export-onnx"' not in (path / "stage.json").read_text()]
    with pytest.raises(UserError, match=r"the run has no output of export-onnx, which dvc.yaml has"):
        recorded(lacking, OVERRIDES)
    with pytest.raises(UserError, match=r"is of no stage of dvc.yaml"):
        recorded(outputs, ["compare.seeds=[1]", "export.seed=1"])
    assert "runs/bad" not in origin.run("git", "ls-remote", url(origin))


@pytest.mark.parametrize("rev", ["master", "v1", "HEAD", "short", "v1~0"])
def test_revision_may_be_named_as_in_git(origin: Project, tmp_path: Path, rev: str):
    name = head(origin)[:9] if rev == "short" else rev
    found, facts = fetch(origin, name, tmp_path / "out")
    assert (found.commit, facts["name"]) == (head(origin), "nuclei")
    assert (tmp_path / "out/nuclei/a.png").read_bytes() == b"picture"
    assert found.params == load_params(origin.folder / "params.yaml")


def test_clone_is_shallow_for_a_commit(origin: Project, tmp_path: Path):
    clone = Clone(url(origin), head(origin), tmp_path / "clone")
    assert clone.git("rev-list", "--count", "HEAD") == "1"


def test_data_in_dvc_are_pulled_through_the_shared_cache(origin: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DREAMTEACHER_DVC_CACHE", str(tmp_path / "cache"))
    found, facts = fetch(origin, "v1", tmp_path / "out", "ingest.source=pool/big", "seed=5")
    assert (found.params.seed, found.source, facts["name"]) == (5, "pool/big", "big")
    assert (tmp_path / "out/big/b.png").read_bytes() == b"big picture"
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file() and file.read_bytes() == b"big picture"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the second time nobody is asked
    fetch(origin, "v1", tmp_path / "again", "ingest.source=pool/big")


@pytest.mark.parametrize(
    ("rev", "override", "said"),
    [
        ("nowhere", "seed=1", "has no revision 'nowhere'; name a commit, tag or branch"),
        ("v1", "ingest.source=samples/none", "has no samples/none, neither in git nor in DVC"),
        ("v1", "ingest.source=s3://raw/pictures", "`dvc import-url s3://raw/pictures pictures` copies them there"),
        ("v1", "finetun.lr=1", "did you mean 'finetune.lr'"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line(origin: Project, tmp_path: Path, rev: str, override: str, said: str):
    with pytest.raises(UserError, match=said) as caught:
        fetch(origin, rev, tmp_path / "out", override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["--upload-pack=touch {};git-upload-pack", "-h"])
def test_what_git_would_take_for_an_option_is_refused(origin: Project, tmp_path: Path, option: str):
    sign = tmp_path / "sign"
    for where, rev in ((url(origin), option.format(sign)), (option.format(sign), "v1")):
        with pytest.raises(UserError, match="begins with '-'; name a git repository"):
            Clone(where, rev, tmp_path / "clone")
    assert not sign.exists()


@pytest.mark.parametrize("rev", ["", " "])
def test_no_revision_is_not_taken_for_the_newest(origin: Project, tmp_path: Path, rev: str):
    with pytest.raises(UserError, match=r"no revision of file://.* is named; set data_rev"):
        fetch(origin, rev, tmp_path / "out")


def test_a_forgotten_repository_is_named(origin: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # as a step finds it: an empty folder
    with pytest.raises(UserError, match=f"^{tmp_path} has no params.yaml and so is no project; git_url names a project's repository"):
        find(".", "")
    with pytest.raises(UserError, match=r"^git_url is empty; name"):
        find("", "v1")


def test_data_are_waited_for_until_their_store_is_back(
    origin: Project, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    clone = Clone(url(origin), "v1", tmp_path / "clone")

    def move(address: str) -> None:
        clone.dvc("remote", "modify", "--local", "storage", "endpointurl", address)

    move(f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("DREAMTEACHER_WAIT_MINUTES", "1")
    monkeypatch.setattr(outages, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: move(s3)))
    assert (clone.get("pool/big") / "b.png").read_bytes() == b"big picture"
    (said,) = [line for line in caplog.messages if "next try" in line]
    assert re.match(r"dvc pull failed: ERROR: .*Could not connect to the endpoint URL.*; next try in 10 s", said)


def test_unreadable_repository_is_said_without_its_password(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read git repository https://127.0.0.1:9/x.git: git fetch failed") as caught:
        Clone("https://me:secret@127.0.0.1:9/x.git", "main", tmp_path / "clone")
    assert "secret" not in str(caught.value)


def test_local_project_is_taken_as_it_is(origin: Project, tmp_path: Path):
    folder = str(origin.folder)
    found = find(folder, "", "seed=3")
    facts = fetch_data.run(git_url=folder, data_version=found.data_version, source=found.source, out=tmp_path / "out")
    assert (found.params.seed, found.commit, facts) == (3, "", {"revision": "", "name": "nuclei"})
    assert (tmp_path / "out/nuclei/a.png").read_bytes() == b"picture"
    with pytest.raises(UserError, match=r"pool/none does not exist; .*`dvc pull`"):
        find(folder, "", "ingest.source=pool/none")


@pytest.mark.parametrize("part", ["images", "."])
def test_what_dvc_has_below_a_folder_that_git_has_is_pulled(origin: Project, tmp_path: Path, part: str):
    """data/ is in git, for the .dvc files of images and masks and for labels.csv; pool/ is there for big.dvc alone."""
    source = "data" if part == "." else f"data/{part}"
    _, facts = fetch(origin, "v1", tmp_path / "out", f"ingest.source={source}")
    made = tmp_path / "out" / facts["name"]
    there = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file() and not path.name.endswith(".dvc")}
    assert there == ({"images/a.png", "masks/a.png", "labels.csv", "list.txt"} if part == "." else {"a.png"})


def test_a_file_of_a_folder_in_dvc_is_pulled_alone(origin: Project, tmp_path: Path):
    clone = Clone(url(origin), "v1", tmp_path / "clone")
    assert clone.get("pool/big/b.png").read_bytes() == b"big picture"
    assert not (clone.folder / "data/masks").exists()


def test_a_list_brings_the_files_that_it_names_and_those_beside_it(origin: Project, tmp_path: Path):
    _, facts = fetch(origin, "v1", tmp_path / "out", "ingest.source=data/list.txt")
    out = tmp_path / "out"
    assert facts["name"] == "data/list.txt"
    assert (out / "data/images/a.png").exists() and (out / "data/masks/a.png").exists() and (out / "data/labels.csv").exists()
    assert (out / "pool/big/b.png").read_bytes() == b"big picture"  # named by ../pool/big/b.png


def local(project: Path, out: Path, *overrides: str) -> dict[str, str]:
    (project / "params.yaml").touch()
    found = find(str(project), "", *overrides)
    return fetch_data.run(git_url=str(project), data_version=found.data_version, source=found.source, out=out)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder outside the project, such as that of a pod's service account."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/token.png").write_bytes(b"s3cret")
    (tmp_path / "project/data").mkdir(parents=True)
    (tmp_path / "project/data/a.png").write_bytes(b"a")
    return tmp_path / "secret"


@pytest.mark.parametrize("source", ["../secret", "data/../../secret", "../../..", "../secret/token.png", ".."])
def test_a_source_outside_the_project_is_refused(secret: Path, tmp_path: Path, source: str):
    with pytest.raises(UserError, match=r"ingest.source = \S+ leads out of the project; name a place inside it"):
        local(tmp_path / "project", tmp_path / "out", f"ingest.source={source}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["data", "data/deep/link", "data/folder/below", "linked"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_out_of_the_project_is_named_and_not_followed(secret: Path, tmp_path: Path, source: str, relative: bool):
    """A file, a folder, and what lies below a linked folder, by whole and by relative paths."""
    project = tmp_path / "project"
    links = {"linked": secret, "data/folder": secret, "data/deep/link": secret / "token.png"}
    (project / "data/deep").mkdir()
    (secret / "below").mkdir()
    for name, target in links.items():
        (project / name).symlink_to(os.path.relpath(target, (project / name).parent) if relative else target)
    with pytest.raises(UserError, match=r"(linked|folder|link|below).* leads|is a link to .*, out of the project") as caught:
        local(project, tmp_path / "out", f"ingest.source={source}")
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.read_bytes() == b"s3cret"]


def test_a_link_out_of_a_clone_is_refused(origin: Project, secret: Path, tmp_path: Path):
    other = Project(tmp_path / "other", Path(origin.environment["PATH"].split(":")[0]))
    origin.run("git", "clone", "-q", url(origin), str(other.folder))
    (other.folder / "samples/nuclei/x.png").symlink_to(secret / "token.png")
    for command in ("config user.email a@b.c", "config user.name a", "add -A", "commit -qm link", "push -q origin HEAD:linked"):
        other.run("git", *command.split())
    with pytest.raises(UserError, match=r"samples/nuclei/x.png, in ingest.source, is a link to .*token.png, out of the project"):
        fetch(origin, "linked", tmp_path / "out")


def test_an_import_from_outside_of_a_clone_is_refused(secret: Path, tmp_path: Path):
    """DVC copies what `import-url --no-download` names from wherever it lies when it is pulled: of this machine, a pod's secrets."""
    project = tmp_path / "project"
    (project / "other.txt").write_text("inside")
    commands = (
        "git init -q",
        "dvc init -q",
        f"dvc import-url -q --no-download {secret}/token.png data/b.png",
        "dvc import-url -q --no-download other.txt copies/c.txt",
        "git add -A",
        "git -c user.name=a -c user.email=a@b.c commit -qm x",
    )
    for name in ("copies", "web"):
        (project / name).mkdir()
    imported = "frozen: true\ndeps:\n- path: http://127.0.0.1:9/latest/token\nouts:\n- path: token\n"
    (project / "web/token.dvc").write_text(imported)
    for command in commands:
        subprocess.run(command.split(), cwd=project, check=True)
    clone = Clone(str(project), "HEAD", tmp_path / "clone")
    for wanted in ("data", "data/b.png", "./data"):
        with pytest.raises(UserError, match=r"^what data/b.png.dvc imports leads to \S+/secret/token.png, out of the project"):
            clone.get(wanted)
    with pytest.raises(UserError, match=r"^what data/b.png.dvc imports leads"):
        clone.get_files(["data/b.png"])
    with pytest.raises(UserError, match=r"^web/token.dvc imports http://127.0.0.1:9/latest/token, which no step fetches; `dvc update"):
        clone.get("web")
    assert not (tmp_path / "clone/data/b.png").exists()
    assert (clone.get("copies") / "c.txt").read_text() == "inside", "what the clone itself has may be copied in it"


@pytest.mark.parametrize("link", [False, True])
def test_a_stage_that_reads_outside_of_a_clone_is_refused(link: bool, secret: Path, tmp_path: Path):
    """`dvc commit` writes the values of a file of parameters into dvc.lock, which is pushed."""
    project = tmp_path / "project"
    (secret / "other.json").write_text('{"key": "s3cret"}')
    place = "link.json" if link else f"{secret}/other.json"
    (project / "link.json").symlink_to(secret / "other.json")
    (project / "dvc.yaml").write_text(f"stages:\n  s:\n    cmd: dreamteacher ingest\n    outs: [out]\n    params: [{place}: [key]]\n")
    for command in ("git init -q", "dvc init -q", "git add -A", "git -c user.name=a -c user.email=a@b.c commit -qm x"):
        subprocess.run(command.split(), cwd=project, check=True)
    with pytest.raises(UserError, match=r"^dvc.yaml: \S+\.json of stage s (leads|is a link) to \S+/secret/other.json, out of the project"):
        Clone(str(project), "HEAD", tmp_path / "clone").places()


def test_links_inside_the_project_are_copied_as_content(secret: Path, tmp_path: Path):
    project = tmp_path / "project"
    (project / "pool/sub").mkdir(parents=True)
    (project / "pool/sub/b.png").write_bytes(b"b")
    (project / "data/link.png").symlink_to("a.png")
    (project / "data/folder").symlink_to(project / "pool/sub")
    (project / "data/round").symlink_to("..")  # to a folder above it
    (project / "data/nowhere.png").symlink_to("gone.png")  # which ingest quarantines
    local(project, tmp_path / "out", "ingest.source=data")
    out = tmp_path / "out/data"
    assert (out / "link.png").read_bytes() == b"a" and (out / "nowhere.png").read_bytes() == b""
    assert [path for path in out.rglob("b.png") if path.read_bytes() == b"b"]
    assert not [path for path in out.rglob("*") if path.is_symlink()]


def test_links_into_a_cache_of_dvc_are_data(secret: Path, tmp_path: Path):
    """As `dvc config cache.type symlink` makes them, into a cache that a team shares."""
    cached = tmp_path / "cache/files/md5/ab" / ("0123456789" * 3)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"big")
    (tmp_path / "project/data/big.png").symlink_to(cached)
    local(tmp_path / "project", tmp_path / "out", "ingest.source=data")
    assert (tmp_path / "out/data/big.png").read_bytes() == b"big"


@pytest.mark.parametrize("line", ["../../secret/token.png", "/etc/hostname", "a/../../../secret/token.png", "link.png"])
def test_a_line_of_a_list_that_leads_out_of_the_project_is_named(secret: Path, tmp_path: Path, line: str):
    project = tmp_path / "project"
    (project / "data/link.png").symlink_to(secret / "token.png")
    (project / "data/list.txt").write_text(f"a.png\n{line}\n")
    with pytest.raises(UserError, match=rf"data/list.txt: (data/)?{re.escape(line)} .*out of the project"):
        local(project, tmp_path / "out", "ingest.source=data/list.txt")
    assert not list((tmp_path / "out").rglob("token.png"))


def test_shards_come_as_they_lie_in_the_project(secret: Path, tmp_path: Path):
    for name in ("s-0.tar", "s-1.tar", "classes.txt"):
        (tmp_path / "project/data" / name).write_text(name)
    facts = local(tmp_path / "project", tmp_path / "out", "ingest.source=data/s-{0..1}.tar")
    assert facts["name"] == "data/s-{0..1}.tar"
    assert {path.name for path in (tmp_path / "out/data").iterdir()} == {"s-0.tar", "s-1.tar", "classes.txt"}
    with pytest.raises(UserError, match="there is no shard"):
        local(tmp_path / "project", tmp_path / "out", "ingest.source=data/s-{0..2}.tar")


@pytest.mark.parametrize(("incoming", "fine"), [("../../..", False), ("in/../..", False), ("/mnt/incoming", True), ("s3://b/in", True)])
def test_a_place_of_arrivals_is_named_by_its_whole_path(secret: Path, tmp_path: Path, incoming: str, fine: bool):
    with nullcontext() if fine else pytest.raises(UserError, match=r"retrain.incoming = \S+ leads out of a step's folder; write its whole"):
        local(tmp_path / "project", tmp_path / "out", "ingest.source=data", f"retrain.incoming={incoming}")


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
    with pytest.raises(UserError, match="no DVC remote to keep the outputs"):
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
