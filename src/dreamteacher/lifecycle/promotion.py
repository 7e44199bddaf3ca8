"""The aliases challenger, champion and previous of a registered model, and the lineage of its versions.

`publish` sets challenger. Promotion sets champion, and previous to the former champion; rollback swaps these two. The model's tag champion
repeats the alias, and stays if someone deletes the champion. The functions delete no version. The inputs of the next retraining (see
LINEAGE) are stored in the artifacts of a version's run. During an outage of MLflow the functions wait (see `outages`); all can be repeated
after an interruption.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dreamteacher.errors import UserError, is_disk_full
from dreamteacher.mlflow_server import connect, download, missing_database, tracking_uri, without_password
from dreamteacher.outages import patient, reason, refusal
from dreamteacher.stage import RECORD, digest_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.tracking import MlflowClient

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
LEAVING = "leaving"  # the champion that is being rolled back, until it becomes previous
LINEAGE = ("data", "teacher", "features", "evaluation")  # stage outputs; of the data set only MANIFEST and stage.json, which has its sha256
MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class Served:
    """The versions with the aliases champion and previous."""

    champion: str | None
    previous: str | None


@patient
def choose(name: str, *, version: str | None = None, sha256: str | None = None) -> str:
    """The number of a version: `version`, else that of the file with `sha256`, else the challenger.

    Raises:
        UserError: there is no such version, the challenger was refused, or MLflow does not answer.
    """
    with registry_client() as client:
        model = registered_model(client, name)
        known = sorted(client.search_model_versions(f"name = '{name}'", max_results=1000), key=lambda one: int(one.version))
        if version:
            found = [one for one in known if str(one.version) == version]
            missing = f"version {version}; it has {', '.join(str(one.version) for one in known) or 'none'}"
        elif sha256:
            found = [one for one in known if one.tags.get("sha256") == sha256]
            missing = "version of this file, so publish has not registered it; run `dreamteacher publish` again, or retry the run"
        else:
            found = [one for one in known if str(one.version) == aliases_of(model).get(CHALLENGER)]
            missing = "challenger; `dreamteacher publish` makes one, or name a version with --version"
        if not found:
            raise UserError(f"{name} has no {missing}")
        chosen = found[-1]
        if not (version or sha256) and "refused" in chosen.tags:
            raise UserError(
                f"version {chosen.version} of {name}, the challenger, was refused ({chosen.tags['refused']}); "
                f"`dreamteacher promote {name} --version {chosen.version}` promotes it anyway"
            )
        return str(chosen.version)


@patient
def promote(name: str, *, version: str, compared_with: str | None = None) -> Served:
    """Make `version` of the model `name` champion and the former champion previous; remove its alias challenger and its tag refused.

    Idempotent. With `compared_with`, the champion with which `version` was compared ("" for none), nothing changes if another version is
    champion now. (MLflow has no conditional update of aliases, so two promotions within a second may both succeed.)

    Raises:
        UserError: there is no such version, or MLflow does not answer.
    """
    choose(name, version=version)
    with registry_client() as client:
        aliases = aliases_of(registered_model(client, name))
        old = aliases.get(CHAMPION)
        if compared_with not in (None, old or "") and old != version:
            return _served(client, name)
        if LEAVING in aliases:  # left by an interrupted rollback, which this promotion overrides
            client.delete_registered_model_alias(name, LEAVING)
        if old not in (None, version):
            client.set_registered_model_alias(name, PREVIOUS, old)
        _set_champion(client, name, version)
        if "refused" in client.get_model_version(name, version).tags:
            client.delete_model_version_tag(name, version, "refused")
        if aliases.get(CHALLENGER) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
        return _served(client, name)


@patient
def rollback(name: str) -> Served:
    """Swap champion and previous of the model `name`. After an interruption, a repeated call completes it.

    Raises:
        UserError: there is no such model or no previous version, or MLflow does not answer.
    """
    with registry_client() as client:
        aliases = aliases_of(registered_model(client, name))
        champion, previous, leaving = (aliases.get(alias) for alias in (CHAMPION, PREVIOUS, LEAVING))
        if not leaving:
            if not champion or not previous or previous == champion:
                raise UserError(f"{name} has no previous champion; name a version: dreamteacher promote {name} --version N")
            client.set_registered_model_alias(name, LEAVING, champion)
            leaving = champion
        if champion == leaving and previous:
            _set_champion(client, name, previous)
        client.set_registered_model_alias(name, PREVIOUS, leaving)
        client.delete_registered_model_alias(name, LEAVING)
        return _served(client, name)


@patient
def refuse(name: str, version: str, reason: str) -> Served:
    """Store `reason` in the tag `refused` of `version`. It keeps its alias.

    Raises:
        UserError: MLflow does not answer.
    """
    with registry_client() as client:
        client.set_model_version_tag(name, version, "refused", reason[:5000])
        return _served(client, name)


@patient
def keep_lineage(name: str, version: str, folders: dict[str, Path], *, digest: str) -> None:
    """Store the lineage of `version`, {name in LINEAGE: folder}, in the artifacts of its run. Idempotent.

    Raises:
        UserError: `digest`, of the evaluation, differs from that of the published version, or MLflow rejects the artifacts.
    """
    with registry_client() as client:
        chosen = client.get_model_version(name, version)
        if chosen.tags.get("evaluation") != digest:
            raise UserError(f"{folders['evaluation']} is not the evaluation that version {version} of {name} was published with")
        place = f"lineage/{digest[:16]}"
        if chosen.tags.get("lineage") == place:
            return
        run = run_of(chosen)
        for file in (MANIFEST, RECORD):
            client.log_artifact(run, str(folders["data"] / file), f"{place}/data")
        for part in LINEAGE[1:]:
            client.log_artifacts(run, str(folders[part]), f"{place}/{part}")
        client.set_model_version_tag(name, version, "lineage", place)  # last: marks it complete


@patient
def has_lineage(name: str, version: str) -> bool:
    """Whether the lineage of `version` is stored.

    Raises:
        UserError: MLflow does not answer.
    """
    with registry_client() as client:
        return "lineage" in client.get_model_version(name, version).tags


@patient
def fetch_champion(name: str, out: Path) -> str | None:
    """Write the inputs of a retraining to the empty or missing folder `out`.

    These are the champion's LINEAGE, champion.json (its version and init), and known/manifest.csv: the manifest of the newest version that
    is champion, previous or refused. Pictures behind an undecided version count as new.

    Returns the champion's version, or None if there is no champion (then at most known/ is written).

    Raises:
        UserError: the champion has no lineage or was deleted, stored artifacts are damaged, or MLflow does not answer.
    """
    out.mkdir(parents=True, exist_ok=True)
    if missing_database():
        return None
    with registry_client() as client:
        if not client.search_registered_models(f"name = '{name}'"):
            return None
        model, versions = client.get_registered_model(name), client.search_model_versions(f"name = '{name}'", max_results=1000)
        aliases = aliases_of(model)
        number, served = aliases.get(CHAMPION), {aliases.get(alias) for alias in (CHAMPION, PREVIOUS, LEAVING)}
        decided = [version for version in versions if str(version.version) in served or "refused" in version.tags]
        if recorded := [version for version in decided if "lineage" in version.tags]:
            newest = max(recorded, key=lambda version: int(version.version))
            _download(client, newest, "data", out / "known")
        if number is None:
            if CHAMPION in model.tags or PREVIOUS in aliases:  # without a comparison any model would become champion
                left = ", ".join(sorted((str(version.version) for version in versions), key=int))
                then = f"`dreamteacher promote {name} --version N` makes one of {left} champion" if left else f"delete {name} to start over"
                raise UserError(
                    f"the champion of {name} in MLflow was deleted, or lost its alias, so a new model cannot be compared with it; {then}"
                )
            return None
        champion = client.get_model_version(name, number)
        if "lineage" not in champion.tags:
            raise UserError(
                f"the lineage of version {number} of {name}, the champion, is not stored; where its artifacts are, run "
                f"`dreamteacher promote {name} --version {number}`"
            )
        for part in LINEAGE:
            _download(client, champion, part, out / part)
        (out / "champion.json").write_text(json.dumps({"name": name, "version": number, "init": champion.tags["init"]}) + "\n")
        return number


def _download(client: MlflowClient, version: ModelVersion, part: str, out: Path) -> None:
    stored = f"what MLflow stores with version {version.version} of {version.name}"
    advice = "repair its artifacts, or promote another version"
    with TemporaryDirectory(dir=out.parent) as scratch:
        try:
            found = download(client, run_of(version), f"{version.tags['lineage']}/{part}", Path(scratch))
        except Exception as error:
            why, outage = reason(error)
            if outage or isinstance(error, UserError):
                raise
            raise UserError(f"{stored} cannot be read ({without_password(why)}); {advice}") from error  # deleted, for example
        shutil.rmtree(out, ignore_errors=True)  # of an attempt before an outage
        found.rename(out)
    try:
        digest_of(out / MANIFEST if part == "data" else out)
    except UserError as error:
        raise UserError(f"{stored} is damaged: {str(error).partition(';')[0]}; {advice}") from error


def run_of(version: ModelVersion) -> str:
    """The id of the run that holds the artifacts of `version`."""
    assert version.run_id, "publish registers from a run"
    return version.run_id


def champion_facts(champion: Path) -> dict[str, Any]:
    """Name, version and init of the champion, and the metrics of that init over seeds, from the output of `fetch_champion`."""
    facts: dict[str, Any] = json.loads((champion / "champion.json").read_text())
    figures = json.loads((champion / "evaluation" / "metrics.json").read_text())
    return facts | figures.get(facts["init"], {})


def part(champion: str, name: str) -> Path | None:
    """The folder of a part of LINEAGE, or known, in the output of `fetch_champion`; None if it is missing."""
    folder = Path(champion) / name
    return folder if folder.is_dir() else None


def start_input(champion: Any, name: str) -> dict[str, str]:
    """The input `start` of a stage from the KFP artifact of `fetch_champion` (or None); {} without a champion."""
    folder = part(champion.path, name) if champion else None
    return {"start": str(folder)} if folder else {}


def _set_champion(client: MlflowClient, name: str, version: str) -> None:
    client.set_registered_model_tag(name, CHAMPION, version)  # first: after an interruption in between, the call can be repeated
    client.set_registered_model_alias(name, CHAMPION, version)


def _served(client: MlflowClient, name: str) -> Served:
    aliases = aliases_of(registered_model(client, name))
    return Served(aliases.get(CHAMPION), aliases.get(PREVIOUS))


def registered_model(client: MlflowClient, name: str) -> RegisteredModel:
    """The registered model `name`.

    Raises:
        UserError: it does not exist.
    """
    found = client.search_registered_models(f"name = '{name}'")
    if not found:
        raise UserError(f"MLflow at {without_password(tracking_uri())} has no model {name}; `dreamteacher publish` registers it")
    return client.get_registered_model(name)


def aliases_of(model: RegisteredModel) -> dict[str, str]:
    """{alias: version number}."""
    return {alias: str(version) for alias, version in model.aliases.items()}


@contextmanager
def registry_client() -> Iterator[MlflowClient]:
    """A registry client that does not create a database; errors in the block become a one-line UserError, except of a full disk here."""
    if file := missing_database():
        raise UserError(
            f"there is no {file}, so no stage has been tracked here; run the command in the project's folder, or set MLFLOW_TRACKING_URI"
        )
    try:
        yield connect()
    except Exception as error:
        if isinstance(error, UserError) or (isinstance(error, OSError) and is_disk_full(error)):
            raise
        where = without_password(tracking_uri())
        raise refusal(
            error, lambda why: f"MLflow at {where} cannot be used ({without_password(why)}); check MLFLOW_TRACKING_URI"
        ) from error
