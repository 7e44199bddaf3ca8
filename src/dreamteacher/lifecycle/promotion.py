"""Which version of a registered model is served: the aliases challenger, champion and previous, and what each was made from.

`publish` makes a version challenger. Promotion makes it champion and the champion before it previous; rollback exchanges those two.
A version is never deleted. What the next retraining starts from (see LINEAGE) lies beside the version, in the artifacts of its run.
While MLflow does not answer, the functions wait (see `outages`); each may be called again after it broke off.
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

from dreamteacher.errors import UserError
from dreamteacher.mlflow_server import connect, missing_database, tracking_uri, without_password
from dreamteacher.outages import patient, reason, refusal
from dreamteacher.stage import RECORD, digest_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.tracking import MlflowClient

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
LEAVING = "leaving"  # the champion that a rollback takes down, until it is previous
LINEAGE = ("data", "teacher", "features", "evaluation")  # stage outputs; of the data set only MANIFEST and stage.json, which has its sha256
MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class Served:
    """The versions that bear the aliases now."""

    champion: str | None
    previous: str | None


@patient
def choose(name: str, *, version: str | None = None, sha256: str | None = None) -> str:
    """The number of the version that is `version`, or whose file has `sha256`, or else of the challenger.

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
            missing = "version of this file: MLflow did not take it; publish again when it does (`dreamteacher publish`, Retry of the run)"
        else:
            found = [one for one in known if str(one.version) == aliases_of(model).get(CHALLENGER)]
            missing = "challenger; `dreamteacher publish` makes one, or name a version with --version"
        if not found:
            raise UserError(f"{name} has no {missing}")
        chosen = found[-1]
        if not (version or sha256) and "refused" in chosen.tags:
            raise UserError(
                f"version {chosen.version} of {name}, the challenger, was refused ({chosen.tags['refused']}); "
                f"`dreamteacher promote {name} --version {chosen.version}` promotes it all the same"
            )
        return str(chosen.version)


@patient
def promote(name: str, *, version: str, compared_with: str | None = None) -> Served:
    """Make `version` of the model `name` champion, and the champion before it previous; it is neither challenger nor refused any more.

    Once more with the same version changes nothing; after an interruption it can be called again. With `compared_with`, the champion
    that `version` was held against ("": there was none), nothing changes if another is champion now. (MLflow cannot exchange an alias on
    a condition: two promotions within the same second both find the champion that they know.)

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
        if old != version:
            if old:
                client.set_registered_model_alias(name, PREVIOUS, old)
            client.set_registered_model_alias(name, CHAMPION, version)
        if "refused" in client.get_model_version(name, version).tags:
            client.delete_model_version_tag(name, version, "refused")
        if aliases.get(CHALLENGER) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
        return _served(client, name)


@patient
def rollback(name: str) -> Served:
    """Exchange champion and previous of the model `name`. After an interruption it can be called again, and finishes.

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
            client.set_registered_model_alias(name, CHAMPION, previous)
        client.set_registered_model_alias(name, PREVIOUS, leaving)
        client.delete_registered_model_alias(name, LEAVING)
        return _served(client, name)


@patient
def refuse(name: str, version: str, reason: str) -> Served:
    """Write on `version` of `name`, as its tag `refused`, why it is not promoted. It keeps its alias.

    Raises:
        UserError: MLflow does not answer.
    """
    with registry_client() as client:
        client.set_model_version_tag(name, version, "refused", reason[:5000])
        return _served(client, name)


@patient
def keep_lineage(name: str, version: str, folders: dict[str, Path], *, digest: str) -> None:
    """Store what `version` was made from, LINEAGE by name, in the artifacts of its run. Once more does nothing.

    Raises:
        UserError: `digest`, of the evaluation, is not that which it was published with, or MLflow does not take them.
    """
    with registry_client() as client:
        chosen = client.get_model_version(name, version)
        if chosen.tags.get("evaluation") != digest:
            raise UserError(f"{folders['evaluation']} is not what version {version} of {name} was published with")
        place = f"lineage/{digest[:16]}"
        if chosen.tags.get("lineage") == place:
            return
        run = run_of(chosen)
        for file in (MANIFEST, RECORD):
            client.log_artifact(run, str(folders["data"] / file), f"{place}/data")
        for part in LINEAGE[1:]:
            client.log_artifacts(run, str(folders[part]), f"{place}/{part}")
        client.set_model_version_tag(name, version, "lineage", place)  # last: it is whole


@patient
def has_lineage(name: str, version: str) -> bool:
    """Whether what `version` of `name` was made from is stored with it.

    Raises:
        UserError: MLflow does not answer.
    """
    with registry_client() as client:
        return "lineage" in client.get_model_version(name, version).tags


@patient
def fetch_champion(name: str, out: Path) -> str | None:
    """Write what a retraining begins with to the empty or missing folder `out`: the champion's LINEAGE and champion.json (its version
    and init), and known/manifest.csv, of the data of the newest version that is champion, previous or refused. What led to a version
    about which nothing was decided is not known: it is to be learnt from again.

    Returns the champion's version; None, and nothing of it is written, when there is none yet.

    Raises:
        UserError: the champion has no lineage or was deleted, what is stored is damaged, or MLflow does not answer.
    """
    out.mkdir(parents=True, exist_ok=True)
    if missing_database():
        return None
    with registry_client() as client:
        versions = client.search_model_versions(f"name = '{name}'", max_results=1000)
        aliases = aliases_of(registered_model(client, name)) if versions else {}
        number, served = aliases.get(CHAMPION), {aliases.get(alias) for alias in (CHAMPION, PREVIOUS, LEAVING)}
        decided = [version for version in versions if str(version.version) in served or "refused" in version.tags]
        if recorded := [version for version in decided if "lineage" in version.tags]:
            newest = max(recorded, key=lambda version: int(version.version))
            _download(client, newest, "data", out / "known")
        if number is None:
            if previous := aliases.get(PREVIOUS):  # someone deleted the champion; without it no gate would compare
                raise UserError(
                    f"{name} has no champion any more, only a previous one, version {previous}; "
                    f"`dreamteacher promote {name} --version {previous}`, or another version, before the next retraining"
                )
            return None
        champion = client.get_model_version(name, number)
        if "lineage" not in champion.tags:
            raise UserError(
                f"nobody stored what version {number} of {name}, the champion, was made from; where its artifacts are, "
                f"`dreamteacher promote {name} --version {number}` does"
            )
        for part in LINEAGE:
            _download(client, champion, part, out / part)
        (out / "champion.json").write_text(json.dumps({"name": name, "version": number, "init": champion.tags["init"]}) + "\n")
        return number


def _download(client: MlflowClient, version: ModelVersion, part: str, out: Path) -> None:
    stored = f"what MLflow stores with version {version.version} of {version.name}"
    advice = "mend its artifacts, or promote another version"
    with TemporaryDirectory(dir=out.parent) as scratch:
        try:
            found = Path(client.download_artifacts(run_of(version), f"{version.tags['lineage']}/{part}", scratch))
        except Exception as error:
            why, outage = reason(error)
            if outage:
                raise
            raise UserError(f"{stored} cannot be read ({without_password(why)}); {advice}") from error  # deleted, for example
        shutil.rmtree(out, ignore_errors=True)  # of an attempt before an outage
        found.rename(out)
    try:
        digest_of(out / MANIFEST if part == "data" else out)
    except UserError as error:
        raise UserError(f"{stored} is damaged: {str(error).partition(';')[0]}; {advice}") from error


def run_of(version: ModelVersion) -> str:
    """The id of the run in whose artifacts lies what is stored with `version`."""
    assert version.run_id, "publish registers from a run"
    return version.run_id


def about(champion: Path) -> dict[str, Any]:
    """What the folder that `fetch_champion` made says of the champion: name, version, init, and that init's figures over seeds."""
    facts: dict[str, Any] = json.loads((champion / "champion.json").read_text())
    figures = json.loads((champion / "evaluation" / "metrics.json").read_text())
    return facts | figures.get(facts["init"], {})


def part(champion: str, name: str) -> Path | None:
    """One of LINEAGE, or known, in the folder that `fetch_champion` made; None when there is none yet."""
    folder = Path(champion) / name
    return folder if folder.is_dir() else None


def start_of(champion: Any, name: str) -> dict[str, str]:
    """The input `start` of a stage, by a KFP artifact that holds what `fetch_champion` made, or None; empty when there is no champion."""
    folder = part(champion.path, name) if champion else None
    return {"start": str(folder)} if folder else {}


def _served(client: MlflowClient, name: str) -> Served:
    aliases = aliases_of(registered_model(client, name))
    return Served(aliases.get(CHAMPION), aliases.get(PREVIOUS))


def registered_model(client: MlflowClient, name: str) -> RegisteredModel:
    """The model `name`.

    Raises:
        UserError: there is none.
    """
    found = client.search_registered_models(f"name = '{name}'")
    if not found:
        raise UserError(f"MLflow at {without_password(tracking_uri())} has no model {name}; `dreamteacher publish` registers it")
    return client.get_registered_model(name)


def aliases_of(model: RegisteredModel) -> dict[str, str]:
    """{alias: number of the version}."""
    return {alias: str(version) for alias, version in model.aliases.items()}


@contextmanager
def registry_client() -> Iterator[MlflowClient]:
    """A client of the registry, which makes no database; what it raises in the block becomes a UserError of one line."""
    if file := missing_database():
        raise UserError(
            f"there is no {file}, so no stage has been tracked here; start in the project's folder, or name MLflow's server in "
            "MLFLOW_TRACKING_URI"
        )
    try:
        yield connect()
    except UserError:
        raise
    except Exception as error:
        where = without_password(tracking_uri())
        raise refusal(
            error, lambda why: f"MLflow at {where} does not answer as it should ({without_password(why)}); check MLFLOW_TRACKING_URI"
        ) from error
