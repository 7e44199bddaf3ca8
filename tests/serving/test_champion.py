"""What a retraining fetches of the champion, and why it may not; errors are one line."""

import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from registered import add_versions, make_lineage, only_database

from dreamteacher import outages
from dreamteacher.errors import UserError
from dreamteacher.lifecycle import promotion
from dreamteacher.lifecycle.promotion import LINEAGE, fetch_champion, promote, refuse, rollback


@only_database
def test_a_champion_whose_lineage_is_not_stored_is_named(registry, tmp_path):
    add_versions(registry, "bare", 2)
    assert fetch_champion("bare", tmp_path / "a") is fetch_champion("nobody", tmp_path / "b") is None
    assert not list((tmp_path / "a").iterdir())
    promote("bare", version="2")
    with pytest.raises(UserError, match=r"the lineage of version 2 of bare, the champion, is not stored; .*promote bare --version 2"):
        fetch_champion("bare", tmp_path / "c")


@pytest.mark.parametrize("promoted", [["1"], ["1", "2"], ["1", "2", "rollback"]])
@pytest.mark.parametrize("lost", ["version", "alias"])
def test_a_champion_that_was_deleted_is_no_first_champion(lost, promoted, registry, request, tmp_path):
    """Without it nothing would be compared, and a worse model would be promoted."""
    name = f"gone-{request.node.name}"
    add_versions(registry, name, 3)
    for version in promoted:
        served = rollback(name) if version == "rollback" else promote(name, version=version)
    assert registry.get_registered_model(name).tags["champion"] == served.champion
    if lost == "version":
        registry.delete_model_version(name, served.champion)
    else:
        registry.delete_registered_model_alias(name, "champion")
    left = ", ".join(version for version in ("1", "2", "3") if lost == "alias" or version != served.champion)
    with pytest.raises(UserError) as error:
        fetch_champion(name, tmp_path / "champion")
    assert str(error.value) == (
        f"the champion of {name} in MLflow was deleted, or lost its alias, so a new model cannot be compared with it; "
        f"`dreamteacher promote {name} --version N` makes one of {left} champion"
    )
    assert not list((tmp_path / "champion").glob("champion.json"))
    promote(name, version="3")
    assert registry.get_registered_model(name).tags["champion"] == "3"


@only_database
def test_after_the_only_version_was_deleted_a_person_decides_that_all_begins_anew(registry, tmp_path):
    add_versions(registry, "emptied", 1)
    promote("emptied", version="1")
    registry.delete_model_version("emptied", "1")
    with pytest.raises(
        UserError, match=r"the champion of emptied .* so a new model cannot be compared with it; delete emptied to start over$"
    ):
        fetch_champion("emptied", tmp_path / "champion")
    registry.delete_registered_model("emptied")
    assert fetch_champion("emptied", tmp_path / "champion") is None


@only_database
def test_a_champion_whose_artifacts_were_deleted_is_named(registry, in_tmp):
    add_versions(registry, "hollow", 1)
    make_lineage(in_tmp, "hollow", "1")
    promote("hollow", version="1")
    run = registry.get_run(registry.get_model_version("hollow", "1").run_id)
    shutil.rmtree(run.info.artifact_uri.removeprefix("file://"))
    said = r"what MLflow stores with version 1 of hollow cannot be read \(.*\); repair its artifacts, or promote another version$"
    with pytest.raises(UserError, match=said):
        fetch_champion("hollow", in_tmp / "champion")


@only_database
def test_an_outage_between_two_parts_of_a_champion_is_waited_for(registry, in_tmp, monkeypatch):
    """The second attempt finds the folders of the first."""
    add_versions(registry, "away", 1)
    make_lineage(in_tmp, "away", "1")
    promote("away", version="1")
    download, parts = LocalArtifactRepository.download_artifacts, []

    def fail_once(artifacts: LocalArtifactRepository, artifact_path: str, dst_path: str) -> str:
        parts.append(artifact_path)
        if parts.count(LINEAGE[-1]) == 1 and parts[-1] == LINEAGE[-1]:
            raise ConnectionError("connection refused")
        return download(artifacts, artifact_path, dst_path)

    monkeypatch.setattr(LocalArtifactRepository, "download_artifacts", fail_once)
    monkeypatch.setenv("DREAMTEACHER_WAIT_MINUTES", "5")
    monkeypatch.setattr(outages, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: None))
    assert fetch_champion("away", in_tmp / "champion") == "1"
    assert parts == ["data", *LINEAGE] * 2
    assert {each.name for each in (in_tmp / "champion").iterdir()} == {"known", *LINEAGE, "champion.json"}


@only_database
def test_a_disk_without_room_for_a_champion_is_one_line_that_does_not_blame_mlflow(registry, in_tmp, monkeypatch, capsys):
    """MLflow's own list of failed downloads, whose first line only counts."""
    add_versions(registry, "large", 1)
    make_lineage(in_tmp, "large", "1")
    promote("large", version="1")
    listed = "The following failures occurred while downloading one or more artifacts from file:///runs:\n##### File teacher/unet #####\n"

    def full(*_: Any, **__: Any) -> str:
        raise MlflowException(f"{listed}[Errno 28] No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifactRepository, "download_artifacts", full)
        said = r"champion has no room for lineage/e+/data of MLflow's run \w+ \(\[Errno 28\] No space left on device\); free some space"
        with pytest.raises(UserError, match=rf"^{re.escape(str(in_tmp))}/{said} and run the command again$"):
            fetch_champion("large", in_tmp / "champion")
    with pytest.raises(OSError, match="No space left on device"), promotion.registry_client():
        Path("/dev/full").write_text("champion.json")


@only_database
@pytest.mark.parametrize("folder", ["known", "data"])
def test_a_manifest_that_was_changed_in_mlflow_is_noticed(folder, registry, in_tmp):
    """Its sha256 is compared: of what is known, a lost line would make an old picture new, and one too many would hide a new one."""
    name = f"changed-{folder}"
    add_versions(registry, name, 2)
    make_lineage(in_tmp, name, "1", "2")
    promote(name, version="1")
    if folder == "known":  # that of the newest version about which something was decided
        refuse(name, "2", "worse")
    version = registry.get_model_version(name, "2" if folder == "known" else "1")
    artifacts = Path(registry.get_run(version.run_id).info.artifact_uri.removeprefix("file://"))
    (artifacts / version.tags["lineage"] / "data/manifest.csv").write_text("name\npicture of 0\n")
    found = rf"what MLflow stores with version {version.version} of {name} is damaged: .*/(known|data)/manifest.csv is damaged \(its sha256"
    with pytest.raises(UserError, match=found):
        fetch_champion(name, in_tmp / "champion")
