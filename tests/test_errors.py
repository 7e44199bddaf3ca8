"""What of the disk is the user's to mend, and what is not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dreamteacher import cli
from dreamteacher.errors import UserError, resource_errors_in_one_line


@pytest.mark.parametrize("make", [lambda: Path("/proc/x/y").mkdir(parents=True), lambda: Path("/proc/y").write_text("")])
def test_a_place_in_which_nothing_can_be_made_is_named(make: Callable[[], object]) -> None:
    with (
        pytest.raises(UserError, match=r"^/proc/\w: No such file or directory; it cannot be made there: name another place"),
        resource_errors_in_one_line(),
    ):
        make()


def test_a_missing_input_is_not_called_an_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), resource_errors_in_one_line():
        (tmp_path / "missing").read_text()


def test_a_command_says_where_it_cannot_write(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamteacher.serving.client.predict", lambda images, url, model, out, **_: out.mkdir(parents=True))
    assert cli.main(["predict", "a.png", "--url", "127.0.0.1:9", "--out", "/proc/foo"]) == 2
    assert capsys.readouterr().err.startswith("error: /proc/foo: No such file or directory; it cannot be made there")
