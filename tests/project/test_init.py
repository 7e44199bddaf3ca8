"""`dreamteacher init` on small made-up folders; what the stages then do is tested with the stages."""

import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dreamteacher import cli
from dreamteacher.project import create, propose, survey
from dreamteacher.project.machine import Machine, Speed
from dreamteacher.settings.file import load_params
from dreamteacher.settings.presets import PRESETS
from dreamteacher.settings.schema import Params
from helpers import PROJECT

CPU = Machine("cpu", "2 CPU cores", 8e9, False)
GPU = Machine("cuda", "NVIDIA L4", 24e9, True)
FAST = Speed(teacher=0.01, features=0.03)


@pytest.fixture(autouse=True)
def a_machine_that_is_not_this_one(monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> None:
    monkeypatch.setattr(create, "look", lambda: CPU)
    monkeypatch.setattr(create, "measure", lambda params, machine: FAST)


def draw(path: Path, width: int = 48, height: int = 40, values: int = 256, channels: tuple[int, ...] = (3,)) -> None:
    """A picture of noise, which no other equals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(abs(hash(str(path))))
    Image.fromarray(random.integers(0, values, (height, width, *channels), np.uint8)).save(path)


def segmentation(root: Path, count: int = 6, masks: int = 4) -> Path:
    for split in ("train", "val"):
        for i in range(count):
            draw(root / f"images/{split}/{i}.png", 171, 128)
        for i in range(masks):
            draw(root / f"masks/{split}/{i}.png", 171, 128, 2, ())
    (root / "classes.txt").write_text("road\ncar\n")
    return root


def classification(root: Path, count: int = 5) -> Path:
    for name in ("cat", "dog", "owl"):
        for i in range(count):
            draw(root / name / f"{i}.jpg", 32, 32)
    return root


def unlabelled(root: Path, count: int = 5) -> Path:
    for i in range(count):
        draw(root / f"{i}.jpg", 640, 480)
    return root


KINDS = {"segmentation": segmentation, "classification": classification, "unlabelled": unlabelled}


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


def test_what_was_understood_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    segmentation(tmp_path / "pictures")
    init("--source", "pictures")
    output = capsys.readouterr().out
    assert "pictures: 12 in pictures\n" in output
    assert "short side 128 to 128 px, median 128 px" in output
    assert "task: segmentation, 2 classes: road, car" in output
    assert "labels: 8 pictures, by masks (such as masks/train/0.png of images/train/0.png)" in output
    assert "validation: the source's own, 6 pictures" in output
    assert "machine: 2 CPU cores, 8 GB, fp32" in output


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    pictures = segmentation(tmp_path / "pictures")
    draw(pictures / "images/test/0.png")
    (pictures / "notes.md").touch()
    lines = survey.survey(str(pictures)).lines()
    assert "test split: 1 pictures, which are left out" in lines
    assert "files that are no pictures: 1 .md (notes.md)" in lines
    boxes = unlabelled(tmp_path / "boxes")
    (boxes / "0.xml").touch()
    (line,) = (line for line in survey.survey(str(boxes)).lines() if "form that is not read" in line)
    assert line.startswith("may be labels in a form that is not read: 1 .xml (0.xml); labels are read from masks")


def test_shards_that_were_read_in_part_may_have_labels(tmp_path: Path) -> None:
    pictures = unlabelled(tmp_path / "pictures")
    (pictures / "4.cls").write_text("cat")
    subprocess.run(["tar", "-C", pictures, "-cf", tmp_path / "train.tar", "0.jpg", "4.jpg", "4.cls"], check=True)
    part, whole = (survey.survey(str(tmp_path / "train.tar"), seconds) for seconds in (0, 20))
    assert (part.complete, part.labels, part.task) == (False, None, None)
    assert (whole.complete, whole.labels, whole.task) == (True, "shards", "classification")


def test_settings_follow_the_pictures(tmp_path: Path) -> None:
    values = {kind: propose.sizes(survey.survey(str(make(tmp_path / kind))), CPU) for kind, make in KINDS.items()}
    assert values["segmentation"]["ingest"] == {"source": str(tmp_path / "segmentation"), "short_side": None}
    assert values["segmentation"]["export"]["size"] == 128
    assert values["classification"]["finetune"]["resolution"] == values["classification"]["export"]["size"] == 32
    assert values["classification"]["ingest"]["val_fraction"] == 0.3, "15 labels: a tenth would leave one or two to measure by"
    assert values["unlabelled"]["ingest"] == {"source": str(tmp_path / "unlabelled"), "short_side": 128, "val_fraction": 0.0}
    assert values["unlabelled"]["distill"]["monitor_images"] == 1, "of 5 pictures 64 cannot be held out"
    for made in values.values():
        assert made["teacher"]["size"] == "tiny"
    on_gpu = propose.sizes(survey.survey(str(tmp_path / "unlabelled")), GPU)
    assert (on_gpu["teacher"], on_gpu["student"]["backbone"]) == (
        {"size": "small", "resolution": 64, "accumulate": 2},
        "resnet50",
    )
    assert values["classification"]["teacher"]["resolution"] == 32, "no crop is larger than the pictures"
    assert [made["distill"].get("margin") for made in values.values()] == [8, None, 8]
    assert all(made["finetune"]["augment"] == "natural" for made in values.values())


def test_for_boxes_nothing_is_proposed_that_detection_lacks(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for i in range(4):
            draw(tmp_path / f"images/{split}/{i}.png", 320, 240)
            (tmp_path / f"labels/{split}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"labels/{split}/{i}.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("names: [car, bus]\n")
    found = survey.survey(str(tmp_path))
    assert (found.task, found.classes, found.labelled, found.val) == ("detection", ["car", "bus"], 8, 4)
    values = propose.sizes(found, CPU)
    assert values["compare"]["inits"] == ["scratch", "features"]
    assert values["label_recipes"] == {}
    assert values["finetune"]["resolution"] == 128


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("side", [1, 16, 33, 64, 100, 256, 5000])
@pytest.mark.parametrize("task", ["segmentation", "classification", None])
def test_settings_are_possible_whatever_the_pictures(task: str | None, side: int, machine: Machine) -> None:
    for pictures, labelled in ((2, 1), (100, 7), (10_000_000, 100_000)):
        labels = {"segmentation": "masks", "classification": "folders", None: "none"}[task]
        found = survey.Survey(
            "p", labels, "there", task, ["a", "b"], pictures, labelled if task else 0, short_sides=Counter({side: pictures})
        )
        proposal = propose.propose(found, machine, FAST, propose.sizes(found, machine))
        text = propose.write(proposal, ["made"])
        Path("params.yaml").write_text(text)
        params = load_params(Path("params.yaml"))
        assert params.distill.monitor_images * 2 <= max(pictures, 2)
        assert params.export.size <= max(32, side)


@pytest.mark.parametrize("preset", ["paper", "best"])
def test_a_preset_is_left_what_it_says(preset: str, tmp_path: Path) -> None:
    """Its lines are not written over by what is proposed, but for what the machine decides."""
    values = propose.sizes(survey.survey(str(KINDS["segmentation"](tmp_path / "in"))), CPU, preset)
    params = Params.model_validate(propose.propose(survey.survey(str(tmp_path / "in")), CPU, FAST, values).values)
    assert (params.preset, params.teacher.size) == (preset, "tiny")
    assert params.distill.objectives == PRESETS[preset]["distill"]["objectives"]
    assert params.student.width == PRESETS[preset]["student"].get("width", 32)
    assert params.student.backbone == "resnet18"


def test_steps_fill_the_hours_that_the_user_has(tmp_path: Path) -> None:
    found = survey.Survey("p", "masks", "there", "segmentation", ["a", "b"], 5000, 2000, short_sides=Counter({128: 5000}))
    values = propose.sizes(found, CPU)
    hours = {wanted: propose.propose(found, CPU, FAST, values, wanted) for wanted in (0.01, 1, 3, 1000)}
    for wanted in (1, 3):
        assert hours[wanted].hours == pytest.approx(wanted, rel=0.1)
    assert hours[3].values["teacher"]["steps"] > 2 * hours[1].values["teacher"]["steps"]
    assert hours[1].values["compare"]["seeds"] == [0, 1, 2]
    assert hours[0.01].values["compare"]["seeds"] == [0], "one seed before fewer steps than make sense"
    assert hours[0.01].values["teacher"]["steps"] == propose.LEAST["teacher"]
    assert hours[1000].hours < 200, "more passes over the pictures gain nothing"


def test_more_than_the_hours_is_admitted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    segmentation(tmp_path / "pictures")
    assert init("--source", "pictures", "--hours", "0.01") == 0
    output = capsys.readouterr().out
    assert "in 1 min nothing would be learnt: these are the fewest steps that make sense" in output
    assert "one seed only, so figures will have no spread" in output
    unlabelled(tmp_path / "others")
    assert cli.main(["init", "other", "--source", "others", "--hours", "0.01"]) == 0
    assert "one seed" not in capsys.readouterr().out


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


def test_a_huge_source_is_sampled_in_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = classification(tmp_path / "pictures", 20)
    for i in range(1000):
        (pictures / f"cat/empty{i}.jpg").touch()
    monkeypatch.setattr(survey, "_examine", lambda *_: pytest.fail("all of it would be read"))
    found = survey.survey(str(pictures), seconds=0)
    assert (found.pictures, found.complete, found.labels) == (1000, False, None)
    assert found.short_side == 32
    assert found.lines()[0] == f"pictures: more than 1,000 in {pictures}"
    assert "dvc repro ingest" in create._next(found)[0], "there may be labels"


def test_a_large_source_is_examined_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = classification(tmp_path / "pictures")
    found = survey.survey(str(pictures), seconds=0)
    assert (found.pictures, found.complete, found.task) == (1, False, "classification")
    assert found.classes == ["cat", "dog", "owl"]


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


def test_pipelines_are_reached_by_the_command(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["pipelines", "compile", "--help"])
    assert done.value.code == 0
    assert "usage: dreamteacher pipelines compile" in capsys.readouterr().out


def test_a_missing_kfp_is_said_with_its_remedy(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without_kfp(name: str, *rest: object, **more: object) -> object:
        if name.partition(".")[0] == "kfp" or name.startswith(("pipelines.compile", "pipelines.local")):
            raise ModuleNotFoundError("No module named 'kfp'", name="kfp")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_kfp)
    monkeypatch.setenv("DREAMTEACHER_IMAGE", f"x@sha256:{'0' * 64}")
    assert cli.main(["pipelines", "compile"]) == 2
    assert capsys.readouterr().err == "error: kfp is not installed; run pip install 'dreamteacher[pipelines]'\n"


def test_an_address_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    pictures = classification(tmp_path / "pictures")
    fsspec.filesystem("memory").put(f"{pictures}/", "/bucket/pictures/", recursive=True)
    found = survey.survey("memory://bucket/pictures")
    assert (found.pictures, found.labelled, found.task) == (15, 15, "classification")
    assert create._place(Path("mine"), "memory://bucket/pictures") == "memory://bucket/pictures"
    for i in range(1000):
        fsspec.filesystem("memory").pipe(f"/bucket/pictures/cat/empty{i}.jpg", b"")
    found = survey.survey("memory://bucket/pictures", seconds=0)
    assert (found.complete, found.labels, found.short_side) == (False, None, 32)
