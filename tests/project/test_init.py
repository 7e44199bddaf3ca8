"""`dreamteacher init` on small made-up folders; what the stages then do is tested with the stages."""

import subprocess
from pathlib import Path

import pytest
import yaml
from project_pictures import KINDS, classification, segmentation, unlabelled

from dreamteacher import cli
from dreamteacher.project import create, survey
from dreamteacher.settings.file import load_params
from helpers import PROJECT


def init(*words: str) -> int:
    return cli.main(["init", "mine", *words])


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_has_all_that_dvc_and_the_stages_read(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures = KINDS[kind](tmp_path / "pictures")
    assert init("--source", "pictures") == 0
    output = capsys.readouterr().out
    params = load_params(Path("mine/params.yaml"))
    assert params.ingest.source == str(pictures)
    assert params.few_labels is None
    settings = yaml.safe_load(Path("mine/params.yaml").read_text())
    for stage in yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"].values():
        for key in stage.get("do", stage).get("params", []):
            group, _, setting = key.partition(".")
            assert group in settings, key
            assert not setting or "$" in setting or setting in settings[group], key
    assert Path("mine/dvc.yaml").read_text() == (PROJECT / "dvc.yaml").read_text()
    assert Path("mine/.dvc/config").read_text() == (PROJECT / ".dvc/config").read_text()
    first = "dvc repro distill-features" if kind == "unlabelled" else "dvc repro ingest"
    assert first in output.split("Next:")[1].splitlines()[3]
    assert ("dreamteacher assess " in output) == (kind != "unlabelled"), "without labels it could only refuse"
    assert first in Path("mine/README.md").read_text()
    for line in survey.survey("pictures").lines()[1:]:
        assert line in output
        assert line in Path("mine/README.md").read_text()


def test_the_preset_is_in_the_settings(tmp_path: Path) -> None:
    classification(tmp_path / "pictures")
    assert init("--source", "pictures", "--preset", "best") == 0
    assert load_params(Path("mine/params.yaml")).preset == "best"


@pytest.mark.parametrize("in_git", [False, True])
def test_pictures_inside_the_project_are_named_from_there(in_git: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """`git add .`, the next command but one, would put gigabytes into git."""
    classification(tmp_path / "mine/pictures")
    if in_git:
        for command in ("git init --quiet", "git add pictures"):
            subprocess.run(command.split(), cwd="mine", check=True)
    assert init("--source", "mine/pictures") == 0
    assert load_params(Path("mine/params.yaml")).ingest.source == "pictures"
    for text in (capsys.readouterr().out, Path("mine/README.md").read_text()):
        assert ("    dvc add pictures\n    git add . && git commit" in text) != in_git
    subprocess.run(["dvc", "stage", "list", "--quiet"], cwd="mine", check=True)


def test_lists_and_shards_are_sources(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures = unlabelled(tmp_path / "pictures")
    (tmp_path / "list.txt").write_text("".join(f"pictures/{path.name}\n" for path in sorted(pictures.iterdir())))
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(2):
        subprocess.run(["tar", "-C", pictures, "-cf", shards / f"train-{number}.tar", "0.jpg", "1.jpg"], check=True)
    for source, stored, count in (
        ("list.txt", tmp_path / "list.txt", 5),
        ("shards", shards, 4),
        ("shards/train-{0..1}.tar", shards, 4),
        ("shards/train-0.tar", shards / "train-0.tar", 2),
    ):
        assert create._place(Path("mine"), source) == str(stored)
        assert survey.survey(source).pictures == count
    assert "watches a folder or one file, not a pattern" in refused(capsys, "--source", "shards/train-{0..0}.tar")


def refused(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert init(*words) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ") and output.count("\n") == 1
    return output


def test_nothing_existing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    classification(tmp_path / "pictures")
    Path("mine").mkdir()
    Path("mine/README.md").write_text("mine")
    Path("mine/.gitignore").write_bytes(b"secret\xe9\nartifacts/")  # not UTF-8
    assert init("--source", "pictures") == 0
    assert "kept mine/README.md" in capsys.readouterr().out
    assert Path("mine/README.md").read_text() == "mine"
    lines = Path("mine/.gitignore").read_bytes().splitlines()
    assert lines[:2] == [b"secret\xe9", b"artifacts/"]
    assert lines.count(b"artifacts/") == 1 and b"mlflow.db*" in lines and b"" not in lines
    before = {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}
    assert "mine is a project already: it has dvc.yaml" in refused(capsys, "--source", "pictures")
    assert before == {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("nowhere", "--source nowhere does not exist"),
        ("empty", "no pictures in"),
        ("masks", "there are masks but no classes.txt"),
        (".", "mine is the folder of the pictures or lies in it"),
        ("no{1..2}.tar", "there is no shard no1.tar"),
        ("masks/images/train/0.png", "0.png is one picture; name its folder"),
        ("pictures.zip", "pictures.zip is an archive; unpack it, and name the folder"),
        ("broken", "broken: the size of none of its 2 pictures can be read; are they pictures?"),
    ],
)
def test_what_cannot_become_a_project_is_refused_in_one_line(
    source: str, output: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Path("empty").mkdir()
    Path("pictures.zip").touch()
    Path("broken").mkdir()
    for name in ("a", "b"):
        Path(f"broken/{name}.jpg").write_text("no picture")
    segmentation(tmp_path / "masks")
    Path("masks/classes.txt").unlink()
    assert output in refused(capsys, "--source", source)
    assert not Path("mine").exists(), "nothing is half made"


def test_a_file_is_no_folder_for_a_project(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "survey", lambda _: pytest.fail("it is known before minutes are spent"))
    Path("mine").touch()
    for folder in ("mine", "mine/below"):
        assert cli.main(["init", folder, "--source", "pictures"]) == 2
        assert capsys.readouterr().err == "error: mine is a file; name another folder for the project\n"


def test_in_a_git_repository_it_is_a_dvc_project_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    classification(tmp_path / "pictures")
    subprocess.run(["git", "init", "--quiet", "."], check=True)
    assert init("--source", "pictures") == 0
    assert not Path("mine/.git").exists()
    assert Path("mine/.dvc").is_dir()
    Path(".gitignore").write_text("hidden/\n")
    assert cli.main(["init", "hidden", "--source", "pictures"]) == 2
    assert f"hidden is ignored by the git repository {tmp_path.resolve()}" in capsys.readouterr().err
    Path(".gitignore").write_text("*.lock\n")
    assert cli.main(["init", "other", "--source", "pictures"]) == 2
    assert f"dvc.lock is ignored by the git repository {tmp_path.resolve()}" in capsys.readouterr().err
    assert not Path("other").exists()


def test_the_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classification(tmp_path / "home/pictures")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert init("--source=~/pictures") == 0
    assert load_params(Path("mine/params.yaml")).ingest.source == str(tmp_path / "home/pictures")


@pytest.mark.parametrize("name", ["~pics", "~root", "~"])
def test_a_folder_whose_name_begins_with_a_tilde_is_itself(name: str, tmp_path: Path) -> None:
    classification(tmp_path / name)
    assert init(f"--source={name}") == 0
    assert load_params(Path("mine/params.yaml")).ingest.source == str(tmp_path / name)


def test_a_name_that_only_begins_with_a_tilde_is_no_home_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "--source ~root does not exist" in refused(capsys, "--source=~root")


def test_without_git_it_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    classification(tmp_path / "pictures")
    monkeypatch.setenv("PATH", "")
    assert "git is not installed here; install it" in refused(capsys, "--source", "pictures")


def test_ignore_files_are_those_of_this_repository() -> None:
    def lines(name: str) -> set[str]:
        return {line for line in (PROJECT / name).read_text().splitlines() if line[0] != "#"}

    assert lines(".dvcignore") - set(create.IGNORED[".dvcignore"]) == {".mypy_cache", ".ruff_cache"}, "of developers"
    assert set(create.IGNORED[".gitignore"]) <= lines(".gitignore")


@pytest.mark.parametrize("hours", ["0", "-1", "inf", "nan", "long"])
def test_hours_are_a_number(hours: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        init("--source", "pictures", "--hours", hours)
    assert f"{hours} is not a number of hours above 0" in capsys.readouterr().err
