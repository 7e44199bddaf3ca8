import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dreamteacher import integrity
from dreamteacher.integrity import first_damaged, remember

pytestmark = pytest.mark.usefixtures("in_tmp")
CONTENT = b"weights"
SHA256 = integrity.hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def hashed(monkeypatch, tmp_path) -> list[str]:
    """The files that were read, in a process and on a machine that have checked nothing before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(integrity, "_here", set())
    read, real = [], integrity.sha256_of
    monkeypatch.setattr(integrity, "sha256_of", lambda path: (read.append(str(path)), real(path))[1])
    return read


@pytest.fixture
def next_process(monkeypatch):
    """Forget what only this process remembers."""
    return lambda: monkeypatch.setattr(integrity, "_here", set())


def put(name: str, content: bytes = CONTENT) -> dict[str, str]:
    path = Path("out", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {name: SHA256}


def check(files: dict[str, str]) -> tuple[str, str] | None:
    return first_damaged(Path("out"), files)


def test_a_file_is_read_once_per_machine(hashed, next_process):
    files = put("a") | put("b")
    assert check(files) is None
    assert sorted(hashed) == ["out/a", "out/b"]
    next_process()
    assert check(files) is None
    assert len(hashed) == 2


def test_the_process_that_wrote_a_file_has_checked_it(hashed, next_process):
    remember(Path("out"), put("a"))
    Path("out").rename("published")
    next_process()
    assert first_damaged(Path("published"), {"a": SHA256}) is None
    assert hashed == []


def test_links_are_the_same_file_and_copies_another(hashed):
    check(put("a"))
    os.link("out/a", "out/hard")
    Path("out/soft").symlink_to("a")
    shutil.copy2("out/a", "out/copy")
    assert check(dict.fromkeys(("hard", "soft", "copy"), SHA256)) is None
    assert hashed == ["out/a", "out/copy"]


@pytest.mark.parametrize("content", [b"weightS", b"weig", b"", b"weights and more"])
def test_a_changed_file_is_noticed_and_read_each_time_until_it_is_right(content, hashed):
    check(put("a"))
    put("a", content)
    for _ in range(2):
        assert check({"a": SHA256}) == ("a", "its sha256 is not the recorded one")
    put("a")
    assert check({"a": SHA256}) is None
    assert len(hashed) == 4


def test_other_content_recorded_for_the_same_file_is_damage():
    check(put("a"))
    assert check({"a": "0" * 64})


@pytest.mark.parametrize("state", [b"\0" * 1000, b"half a li", os.urandom(5000), b"\n\n\n"])
def test_a_damaged_state_file_costs_one_more_reading(state, hashed, next_process):
    files = put("a")
    check(files)
    for _ in range(2):
        integrity._state_file().write_bytes(state)
        next_process()
        assert check(files) is None
    assert len(hashed) == 3
    next_process()
    assert check(files) is None
    assert len(hashed) == 3


def test_without_a_place_for_the_state_the_process_remembers(hashed, monkeypatch):
    Path("file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("file").absolute()))
    files = put("a")
    assert check(files) is None
    assert check(files) is None
    assert hashed == ["out/a"]


def test_the_state_file_keeps_its_newer_half_when_it_grows(monkeypatch, hashed, next_process):
    monkeypatch.setattr(integrity, "LIMIT", 10)
    files = {}
    for number in range(25):
        files |= put(str(number))
        check(files)
    assert integrity._state_file().stat().st_size <= 10 * 33
    assert {path.name for path in integrity._state_file().parent.iterdir()} == {"verified", "verified.lock"}
    hashed.clear()
    next_process()
    check({"24": SHA256})
    assert hashed == []


def test_a_file_that_the_disk_cannot_read_is_damaged(monkeypatch):
    def fail(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    files = put("a")
    monkeypatch.setattr(integrity, "sha256_of", fail)
    assert check(files) == ("a", "Input/output error")


def test_only_one_of_several_processes_reads_a_file_to_check_it(hashed):
    files = put("a")
    body = (
        "import sys; from pathlib import Path; from dreamteacher import integrity; real = integrity.sha256_of\n"
        "def slow(path): print('in', flush=True); sys.stdin.read(); return real(path)\n"
        f"integrity.sha256_of = slow; assert integrity.first_damaged(Path('out'), {files}) is None\n"
    )
    with subprocess.Popen([sys.executable, "-c", body], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"in\n"
        second = threading.Thread(target=check, args=[files])
        second.start()
        second.join(0.3)
        assert second.is_alive()
        first.stdin.close()
        assert first.wait() == 0
        second.join(10)
    assert hashed == []
