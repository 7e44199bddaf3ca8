"""Promotion and rollback move the aliases of a registered model, on a database and on a real server; errors are one line."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from registered import add_versions, aliases, known, make_lineage, only_database

from dreamteacher import cli, outages
from dreamteacher.errors import UserError
from dreamteacher.lifecycle import promotion
from dreamteacher.lifecycle.promotion import choose, fetch_champion, promote, refuse, rollback
from dreamteacher.mlflow_server import missing_database
from dreamteacher.settings.downstream import Publish
from dreamteacher.settings.schema import Params
from dreamteacher.stage import digest_of, open_stage
from dreamteacher.stages import promote as promote_stage
from helpers import free_port


def test_promotion_and_rollback_move_the_aliases_and_can_be_repeated(registry, request, capsys):
    name = f"story-{request.node.callspec.id}"
    add_versions(registry, name, 3)
    registry.set_registered_model_alias(name, "challenger", "1")
    assert cli.main(["promote", name]) == 0
    assert capsys.readouterr().out == f"{name}: champion is version 1, previous none\n"
    assert aliases(registry, name) == {"champion": 1}
    with pytest.raises(UserError, match=f"{name} has no previous champion"):
        rollback(name)
    registry.set_registered_model_alias(name, "challenger", "2")
    for _ in range(2):
        assert cli.main(["promote", name, "--version", "2"]) == 0
        assert aliases(registry, name) == {"champion": 2, "previous": 1}
    assert cli.main(["rollback", name]) == 0
    assert aliases(registry, name) == {"champion": 1, "previous": 2}
    assert choose(name, sha256="3" * 8) == "3"
    promote(name, version="3")
    assert aliases(registry, name) == {"champion": 3, "previous": 1}


class Stopped(Exception):
    """The process was killed."""


class Failing:
    """A client of which change number `fatal` and all calls after it fail: whoever is killed while it reads leaves what it changed last."""

    def __init__(self, client: MlflowClient, fatal: int):
        self.client, self.left, self.failed = client, fatal, False

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            changes = not name.startswith(("get_", "search_", "list_", "download_"))
            self.failed = self.failed or (changes and self.left == 0)
            if self.failed:
                raise Stopped
            self.left -= changes
            return getattr(self.client, name)(*args, **named)

        return call


def state(registry: MlflowClient, name: str) -> tuple[dict[str, int], dict[int, dict[str, str]]]:
    return aliases(registry, name), {int(v.version): dict(v.tags) for v in registry.search_model_versions(f"name = '{name}'")}


def stop_at_each_change(registry: MlflowClient, name: str, action: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run `action` completely, then killed before each change in MLflow and repeated, from the same start; returns the number of changes.

    Each must end as the whole one did.
    """
    before, tags = state(registry, name)

    def reset() -> None:
        now, now_tags = state(registry, name)
        for alias in now.keys() - before.keys():
            registry.delete_registered_model_alias(name, alias)
        for alias, version in before.items() - now.items():
            registry.set_registered_model_alias(name, alias, str(version))
        for version, wanted in tags.items():
            for key in now_tags[version].keys() - wanted.keys():
                registry.delete_model_version_tag(name, str(version), key)
            for key, value in wanted.items() - now_tags[version].items():
                registry.set_model_version_tag(name, str(version), key, value)

    action()
    whole = state(registry, name)
    for fatal in range(100):
        reset()
        client = Failing(registry, fatal)
        with monkeypatch.context() as patch:
            patch.setattr(promotion, "connect", lambda client=client: client)
            try:
                action()
            except UserError as error:
                assert isinstance(error.__cause__, Stopped)
        action()
        assert state(registry, name) == whole, fatal
        if not client.failed:
            return fatal
    raise AssertionError("it never ends")


def make_verdict(folder: Path, registry: MlflowClient, name: str, *, version: str, champion: str, passed: bool) -> Callable[[], Any]:
    """The last step of a retraining that published `version` and compared it with `champion`."""
    for stage, file, text in (
        ("gate", "verdict.json", json.dumps({"passed": passed, "reason": "miou 0.1, at least 0.5", "champion": champion})),
        ("export-onnx", "model.onnx", f"{name} {version}"),
    ):
        with open_stage(stage, params={}, inputs={}, out=folder / stage) as opened:
            (opened.tmp / file).write_text(text)
    registry.set_model_version_tag(name, version, "sha256", digest_of(folder / "export-onnx/model.onnx"))
    params = Params(publish=Publish(name=name))
    return lambda: promote_stage.run(params, gate=folder / "gate", onnx=folder / "export-onnx")


@only_database
@pytest.mark.parametrize("passed", [True, False])
def test_the_last_step_of_a_retraining_killed_at_any_change_and_repeated_ends_right(passed, registry, in_tmp, monkeypatch):
    name = f"killed-{passed}"
    add_versions(registry, name, 3)
    make_lineage(in_tmp / "made", name, "2", "3")
    promote(name, version="1")
    promote(name, version="2")
    registry.set_registered_model_alias(name, "challenger", "3")
    decide = make_verdict(in_tmp, registry, name, version="3", champion="2", passed=passed)
    assert known(name, in_tmp / "before") == "2"  # nothing was decided yet, so the pictures of 3 are still to be learnt from
    assert stop_at_each_change(registry, name, decide, monkeypatch) == (4 if passed else 1)
    assert aliases(registry, name) == ({"champion": 3, "previous": 2} if passed else {"champion": 2, "previous": 1, "challenger": 3})
    assert registry.get_model_version(name, "3").tags.get("refused") == (None if passed else "miou 0.1, at least 0.5")
    assert known(name, in_tmp / "after") == "3"


@only_database
def test_promotion_by_hand_killed_at_any_change_and_repeated_ends_right(registry, monkeypatch):
    add_versions(registry, "killed", 3)
    promote("killed", version="1")
    promote("killed", version="2")
    registry.set_registered_model_alias("killed", "challenger", "3")
    refuse("killed", "3", "too slow")
    assert stop_at_each_change(registry, "killed", lambda: promote("killed", version="3"), monkeypatch) == 5
    assert aliases(registry, "killed") == {"champion": 3, "previous": 2}
    assert "refused" not in registry.get_model_version("killed", "3").tags


@only_database
def test_an_interrupted_rollback_is_finished_by_the_next_or_forgotten_by_a_promotion(registry, monkeypatch):
    add_versions(registry, "halfway", 3)
    for version in ("1", "2"):
        promote("halfway", version=version)
    for fatal in range(20):
        client = Failing(registry, fatal)
        with monkeypatch.context() as patch:
            patch.setattr(promotion, "connect", lambda client=client: client)
            with suppress(UserError):
                rollback("halfway")
        if not client.failed:
            break
        begun = aliases(registry, "halfway") != {"champion": 2, "previous": 1}
        if begun and "leaving" not in aliases(registry, "halfway"):
            assert aliases(registry, "halfway") == {"champion": 1, "previous": 2}  # done, but for the answer
        else:
            rollback("halfway")
        assert aliases(registry, "halfway") == {"champion": 1, "previous": 2}
        rollback("halfway")
    assert fatal == 5
    registry.set_registered_model_alias("halfway", "leaving", "1")
    promote("halfway", version="3")
    assert aliases(registry, "halfway") == {"champion": 3, "previous": 1}


@only_database
def test_a_run_promotes_only_over_the_champion_that_it_compared_with(registry, in_tmp):
    add_versions(registry, "race", 4)
    make_lineage(in_tmp / "made", "race", "1", "2", "3", "4")
    decide = {v: make_verdict(in_tmp / v, registry, "race", version=v, champion="1", passed=True) for v in ("2", "3")}
    decide["4"] = make_verdict(in_tmp / "4", registry, "race", version="4", champion="", passed=True)  # it saw no champion
    promote("race", version="1")
    assert decide["2"]().promoted
    for version, compared in (("3", "version 1"), ("4", "no champion")):
        outcome = decide[version]()
        assert not outcome.promoted
        assert outcome.reason.startswith(f"it was compared with {compared}, but the champion is version 2 by now")
        assert "refused" not in registry.get_model_version("race", version).tags
    assert decide["2"]().promoted  # once more
    assert aliases(registry, "race") == {"champion": 2, "previous": 1}
    assert known("race", in_tmp / "known") == "2"  # so the pictures of 3 and 4 are new to the next run
    promote("race", version="3")  # by hand, whatever was compared
    assert aliases(registry, "race") == {"champion": 3, "previous": 2}


@only_database
def test_a_refused_challenger_is_promoted_by_its_number_only(registry, in_tmp, capsys):
    add_versions(registry, "refused", 2)
    promote("refused", version="1")
    registry.set_registered_model_alias("refused", "challenger", "2")
    refuse("refused", "2", "floor: miou 0.1, at least 0.5")
    assert cli.main(["promote", "refused"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "version 2 of refused, the challenger, was refused (floor: miou 0.1, at least 0.5); " in message
    assert "`dreamteacher promote refused --version 2`" in message
    assert aliases(registry, "refused") == {"champion": 1, "challenger": 2}
    assert cli.main(["promote", "refused", "--version", "2"]) == 0
    assert aliases(registry, "refused") == {"champion": 2, "previous": 1}
    assert "refused" not in registry.get_model_version("refused", "2").tags


@only_database
def test_promotion_by_hand_warns_only_of_what_is_stored_nowhere(registry, in_tmp, caplog):
    add_versions(registry, "stored", 2)
    make_lineage(in_tmp / "made", "stored", "1")
    registry.set_model_version_tag("stored", "1", "repository", "somewhere")
    caplog.clear()
    promote_stage.promote_manually(Params(), "stored", artifacts=in_tmp / "artifacts", version="1")
    assert not caplog.records
    promote_stage.promote_manually(Params(), "stored", artifacts=in_tmp / "artifacts", version="2")
    assert "what version 2 was made from is not stored" in caplog.text and "git checkout runs/RUN_ID" in caplog.text
    assert "the repository of version 2 is not stored, and no cluster can serve it" in caplog.text


@only_database
def test_what_is_missing_is_named(registry):
    with pytest.raises(UserError, match=r"has no model nobody; `dreamteacher publish` registers it"):
        promote("nobody", version="1")
    add_versions(registry, "lone", 2)
    with pytest.raises(UserError, match="lone has no challenger; `dreamteacher publish` makes one"):
        choose("lone")
    with pytest.raises(UserError, match="lone has no version 7; it has 1, 2"):
        promote("lone", version="7")
    with pytest.raises(
        UserError,
        match=r"lone has no version of this file, so publish has not registered it; run `dreamteacher publish` again, or retry the run",
    ):
        choose("lone", sha256="f" * 64)


@pytest.mark.parametrize("words", [["promote"], ["rollback", "blobs"], ["last-run"], ["fetch-model", "blobs", "--out", "models"]])
def test_a_folder_where_nothing_was_tracked_is_named_and_stays_empty(words, in_tmp, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.main(words) == 2
    assert f"error: there is no {in_tmp / 'mlflow.db'}, so no stage has been tracked here; " in capsys.readouterr().err
    assert fetch_champion("blobs", in_tmp / "champion") is None
    assert list(in_tmp.iterdir()) == [in_tmp / "champion"]
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:5000")  # models are not in the missing database
    assert missing_database() is None


def test_server_that_is_down_is_one_line_without_the_password(in_tmp):
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"http://me:secret@127.0.0.1:{free_port()}"}
    command = [sys.executable, "-m", "dreamteacher.cli", "promote", "blobs"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: MLflow at http://127.0.0.1:")
    assert done.stderr.count("\n") == 1 and "secret" not in done.stderr


@only_database
def test_promotion_by_hand_waits_for_mlflow_and_says_so(registry, monkeypatch, caplog):
    add_versions(registry, "awaited", 1)
    alive = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("DREAMTEACHER_WAIT_MINUTES", "5")
    back = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: monkeypatch.setenv("MLFLOW_TRACKING_URI", alive))
    monkeypatch.setattr(outages, "time", back)
    assert cli.main(["promote", "awaited", "--version", "1"]) == 0
    assert aliases(registry, "awaited") == {"champion": 1}
    (message,) = [line for line in caplog.messages if "next try" in line]
    assert message.startswith("MLflow at http://127.0.0.1:") and message.endswith(
        "([Errno 111] Connection refused); check MLFLOW_TRACKING_URI; next try in 10 s, for 5 more minutes at most (Ctrl-C ends it)"
    )
