"""Deliver Triton repositories from `publish` to the serving pods: stored with the registered version, fetched atomically.

A version's repository, the output of `publish`, is in the artifacts of its run. The version's tag `repository` is the sha256 of its
stage.json, which lists those of all files. So a pod serves exactly what was published, or does not become ready.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from dreamteacher.errors import UserError
from dreamteacher.files import sha256_of
from dreamteacher.lifecycle.promotion import aliases_of, registered_model, registry_client, run_of
from dreamteacher.mlflow_server import download
from dreamteacher.onnx_files import MODEL_FILE
from dreamteacher.outages import patient
from dreamteacher.serving.triton_repository import VERSION
from dreamteacher.stage import RECORD, read_stage

log = logging.getLogger(__name__)
REPOSITORY = "repository"  # tag of the version, and artifact folder in its run


@patient
def keep_repository(name: str, version: str, folder: Path) -> None:
    """Store `folder`, the output of `publish`, with `version` of `name`. Idempotent.

    Raises:
        UserError: it is incomplete, or of another model than the version, or MLflow does not store it.
    """
    read_stage(folder)
    (model,) = folder.glob(f"production/{name}/{VERSION}/{MODEL_FILE}")
    place, sha256 = _place(folder), sha256_of(model).hex()
    with registry_client() as client:
        chosen = client.get_model_version(name, version)
        if chosen.tags.get(REPOSITORY) == place:
            return
        if sha256 != chosen.tags["sha256"]:
            raise UserError(f"{folder} serves another model than version {version} of {name}; run `dreamteacher publish` again")
        client.log_artifacts(run_of(chosen), str(folder), place)
        client.set_model_version_tag(name, version, REPOSITORY, place)  # last: marks it complete


def resolve(name: str, *, alias: str) -> str:
    """The number of the version of `name` with `alias`.

    Raises:
        UserError: none does, or MLflow does not answer.
    """
    with registry_client() as client:
        found = aliases_of(registered_model(client, name))
    if alias not in found:
        raise UserError(f"{name} has no {alias}; it has {', '.join(sorted(found)) or 'no alias'}")
    return found[alias]


def has_repository(name: str, version: str) -> bool:
    """Whether the repository of `version` of `name` is stored, so that a cluster can serve it.

    Raises:
        UserError: there is no such version, or MLflow does not answer.
    """
    with registry_client() as client:
        return REPOSITORY in client.get_model_version(name, version).tags


def not_stored(name: str, version: str) -> UserError:
    """The error if `has_repository` is False."""
    return UserError(
        f"the repository of version {version} of {name} is not stored; where its artifacts are, "
        f"`dreamteacher promote {name} --version {version}` stores it"
    )


@patient
def fetch_repository(name: str, version: str, out: Path, *, backend: str = "production") -> list[str]:
    """Write the repository of `version` of `name` to `out`, atomically.

    Each model gets the number of the registered version, so that Triton's responses and metrics contain it.

    Args:
        name: of the registered model.
        version: its number.
        out: the model repository for Triton; replaced if it exists.
        backend: production, or local for a Triton with only the python backend.

    Returns:
        The names of the models.

    Raises:
        UserError: nothing is stored with the version, a file is damaged, or MLflow does not answer.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=".fetch-") as scratch:
        with registry_client() as client:
            chosen = client.get_model_version(name, version)
            place = chosen.tags.get(REPOSITORY)
            if not place:
                raise not_stored(name, version)
            folder = download(client, run_of(chosen), place, Path(scratch))
        _check(folder, place, f"version {version} of {name}")
        for model in (folder / backend).glob(f"*/{VERSION}"):
            model.rename(model.with_name(version))
        if out.exists():
            shutil.rmtree(out)
        (folder / backend).rename(out)
    models = sorted(path.parent.name for path in out.glob("*/config.pbtxt"))
    log.info("version %s of %s: %s, every sha256 as published", version, name, ", ".join(models))
    return models


def fetch_repositories(versions: dict[str, str], out: Path, *, backend: str = "production") -> list[str]:
    """Write the repositories of several registered models, {name: version}, merged into `out`, atomically.

    Returns:
        The names of the models in it.

    Raises:
        UserError: as `fetch_repository`; or two registered models contain a served model of the same name.
    """
    if len(versions) == 1:
        ((name, version),) = versions.items()
        return fetch_repository(name, version, out, backend=backend)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=".fetch-") as scratch:
        together, found = Path(scratch) / "together", list[str]()
        together.mkdir()
        for name, version in versions.items():
            for model in fetch_repository(name, version, Path(scratch) / name, backend=backend):
                if model in found:
                    raise UserError(
                        f"{name} serves a model {model}, as another one of {', '.join(versions)} does; rename one (publish.name)"
                    )
                (Path(scratch) / name / model).rename(together / model)
                found.append(model)
        if out.exists():
            shutil.rmtree(out)
        together.rename(out)
    return found


def _place(folder: Path) -> str:
    """Path of the output of `publish` in the artifacts of the version's run."""
    return f"{REPOSITORY}/{sha256_of(folder / RECORD).hex()[:32]}"


def _check(folder: Path, place: str, version: str) -> None:
    """Raises UserError if `folder`, with the stage.json `place`, is not what was stored with `version`."""
    try:
        read_stage(folder)
        problem = "" if _place(folder) == place else f"its {RECORD} is not the recorded one"
    except UserError as error:
        problem = str(error).partition(";")[0].replace(f"{folder}/", "")
    if problem:
        raise UserError(f"what MLflow stores with {version} is damaged: {problem}; deploy another version, or publish this one again")
