"""A data version reaches the cluster: a bare git repository and an S3 API, real git and DVC."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pipeline import Project, fetch, find, head, url

from dreamteacher import outages
from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params
from dreamteacher.stages import fetch_data
from dreamteacher.versioning import Clone
from helpers import free_port


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
    ("rev", "override", "message"),
    [
        ("nowhere", "seed=1", "has no revision 'nowhere'; name a commit, tag or branch"),
        ("v1", "ingest.source=samples/none", "has no samples/none, neither in git nor in DVC"),
        ("v1", "ingest.source=s3://raw/pictures", "`dvc import-url s3://raw/pictures pictures` copies them there"),
        ("v1", "finetun.lr=1", "did you mean 'finetune.lr'"),
    ],
)
def test_what_cannot_be_fetched_is_reported_in_one_line(origin: Project, tmp_path: Path, rev: str, override: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
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
def test_an_empty_revision_is_refused(origin: Project, tmp_path: Path, rev: str):
    with pytest.raises(UserError, match=r"data_rev is empty; set it to a commit, tag or branch of file://"):
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
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # its own further tries take half a minute
    clone = Clone(url(origin), "v1", tmp_path / "clone")

    def move(address: str) -> None:
        clone.dvc("remote", "modify", "--local", "storage", "endpointurl", address)

    move(f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("DREAMTEACHER_WAIT_MINUTES", "1")
    monkeypatch.setattr(outages, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: move(s3)))
    assert (clone.get("pool/big") / "b.png").read_bytes() == b"big picture"
    (message,) = [line for line in caplog.messages if "next try" in line]
    assert re.match(r"dvc pull failed: ERROR: .*Could not connect to the endpoint URL.*; next try in 10 s", message)


def test_unreadable_repository_is_reported_without_its_password(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read git repository https://127.0.0.1:9/x.git: git fetch failed") as caught:
        Clone("https://me:secret@127.0.0.1:9/x.git", "main", tmp_path / "clone")
    assert "secret" not in str(caught.value)


def test_local_project_is_used_unchanged(origin: Project, tmp_path: Path):
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
