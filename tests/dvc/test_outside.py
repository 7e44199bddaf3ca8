"""Links, imports and paths of a repository that lead outside the project are refused."""

import os
import re
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
from pipeline import Project, fetch, find, url

from dreamteacher.errors import UserError
from dreamteacher.stages import fetch_data
from dreamteacher.versioning import Clone


def local(project: Path, out: Path, *overrides: str) -> dict[str, str]:
    (project / "params.yaml").touch()
    found = find(str(project), "", *overrides)
    return fetch_data.run(git_url=str(project), data_version=found.data_version, source=found.source, out=out)


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
    with pytest.raises(UserError, match=r"^web/token.dvc imports http://127.0.0.1:9/latest/token, which no step fetches; run `dvc update"):
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


def test_shards_are_fetched_unchanged(secret: Path, tmp_path: Path):
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
