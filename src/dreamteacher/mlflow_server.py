"""The MLflow server: its URI, a client, and writing journal records as runs, metrics, artifacts and versions."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from contextlib import chdir, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamteacher.errors import UserError, first_line, is_disk_full
from dreamteacher.files import replace_file
from dreamteacher.outages import reason
from dreamteacher.project_root import project_folder

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

PUBLISHED = "published_ms"  # tag of a model version: time of its newest record, milliseconds since 1970
DIGEST = "dreamteacher.digest"  # tag of a run: digest of the stage's settings and inputs
CHAIN = "dreamteacher.chain"  # tag of a chain's parent run, if created by us
KIND, KIND_OF_TRAINING = "mlflow.experimentKind", "custom_model_development"  # otherwise MLflow 3 shows LLM traces


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else a database in the project's folder, with an absolute path so that `sync` can run in any folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, path = uri[:10], uri[10:]
    return f"{scheme}{(project_folder() / path).absolute()}" if scheme == "sqlite:///" else uri


def missing_database() -> Path | None:
    """The file of the database that MLflow would make at `tracking_uri`; None if it exists, or runs or models are elsewhere."""
    uri = tracking_uri()
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    is_local = uri.startswith("sqlite:///") and not os.environ.get("MLFLOW_REGISTRY_URI")
    return file if is_local and not file.exists() else None


def without_password(text: str) -> str:
    """`text` without user and password in its URLs; a password may contain unencoded @ and, after a user name, /."""
    return re.sub(r"(?<=://)(?:[^/\s]*|[^:/@\s]+:(?!\d+/)\S*)@", "", text)


def connect() -> MlflowClient:
    """A client of MLflow and its registry, for queries; records are written through a journal (tracking.py)."""
    return client_of(tracking_uri())


def client_of(uri: str) -> MlflowClient:
    """A client of the MLflow at `uri`, with timeouts of seconds; creates the tables of an empty database.

    Raises:
        UserError: the database has the tables of another MLflow version.
    """
    # A stage must not hang if the server is down: MLflow's defaults are 7 attempts of 120 s.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", str(sys.stderr.isatty()).lower())
    from mlflow import __version__
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    if not uri.startswith("http"):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 3  # within a second; MLflow's ten attempts take 100 s, and cannot be configured
    for chatty in ("alembic", "mlflow", "urllib3.connectionpool"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs the SQL of each error
    with chdir(project_folder()):  # location of mlruns/, if the database is new
        try:
            return MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI", uri))
        except MlflowException as error:
            if "out-of-date database schema" not in str(error):
                raise
            raise UserError(
                f"the tables of {without_password(uri)} are not those of MLflow {__version__}: older ones are brought up to date by "
                f"`mlflow db upgrade URI` after a backup, for newer ones install their MLflow"
            ) from error


def replay(client: MlflowClient, run: str, batch: list[dict[str, Any]], journal: Path, logged: dict[str, list[int]]) -> None:
    """Send one record, or many consecutive ones of metrics (MLflow takes 1000 values a request, and 100 parameters).

    Metrics sent by an earlier attempt of the stage are skipped; `logged` is the result of `logged_steps`.
    """
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    record = batch[0]
    try:
        match record["do"]:
            case "metrics":
                points = [(key, value, one["time"], one["step"]) for one in batch for key, value in one["values"].items()]
                metrics = [Metric(key, value, time, step) for key, value, time, step in points if not _is_logged(key, step, logged)]
                for i in range(0, len(metrics), 1000):
                    client.log_batch(run, metrics=metrics[i : i + 1000])
            case "params":
                params = [Param(key, value[:6000]) for key, value in record["values"].items()]
                for i in range(0, len(params), 100):
                    client.log_batch(run, params=params[i : i + 100])
            case "tags":
                client.log_batch(run, tags=[RunTag(key, value) for key, value in record["values"].items()])
            case "artifact":
                _upload(client, run, journal / record["file"], record["folder"])
            case "register":
                _register(client, run, journal / record["file"], record)
            case "end":
                client.set_terminated(run, record["status"], record["time"])
                above = client.get_run(run).data.tags.get("mlflow.parentRunId")
                parent = client.get_run(above) if above else None
                # KFP ends its own parent runs. For a chain's parent, a later stage may have moved the end.
                if parent and CHAIN in parent.data.tags and (parent.info.end_time or 0) <= record["time"]:
                    client.set_terminated(parent.info.run_id, record["status"], record["time"])
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        # Refused permanently (for example, the run has another value of a parameter): must not block the rest.
        log.warning("MLflow refuses the %s of %s: %s", record["do"], journal.name, first_line(error))


def logged_steps(client: MlflowClient, run: str, digest: str | None) -> dict[str, list[int]]:
    """{metric: its first and last step} in `run`, if it belongs to the same stage with the same settings and inputs (`digest`).

    Resumed training repeats the steps after its checkpoint, and a retried pipeline step all of them.
    """
    data = client.get_run(run).data
    if not digest or data.tags.get(DIGEST) != digest:
        return {}
    steps = {key: [point.step for point in client.get_metric_history(run, key)] for key in data.metrics}
    return {key: [min(found), max(found)] for key, found in steps.items()}


def _is_logged(key: str, step: int, logged: dict[str, list[int]]) -> bool:
    """Whether the point was sent before. Step 0 is used for final metrics only, one of which may have the name of a curve."""
    first, last = logged.get(key, [1, 0])
    return first == 0 if step == 0 else step <= last


def find_or_create_run(client: MlflowClient, start: dict[str, Any], run: str | None, journal: str) -> str:
    """The run of the journal's records, set running: named, known, of an earlier attempt, or a new child of the chain's run."""
    run = next((one for one in (start["run"], start.get("before"), run) if one and _is_there(client, one, journal)), None)
    if not run:
        above = start.get("parent")
        above = above if above and _is_there(client, above, journal) else None
        experiment = client.get_run(above).info.experiment_id if above else _experiment(client, start)
        earlier = client.search_runs([experiment], f"tags.`dreamteacher.journal` = '{journal}'", max_results=1)
        if earlier:
            run = earlier[0].info.run_id
        else:
            tags = {"mlflow.parentRunId": above or _chain(client, experiment, start), "dreamteacher.journal": journal}
            run = client.create_run(experiment, start["time"], tags, start["name"]).info.run_id
    client.update_run(run, status="RUNNING")
    if start["memory"]:
        with suppress(FileNotFoundError):  # the stage has ended, and its checkpoints are deleted
            replace_file(Path(start["memory"]), json.dumps({"journal": journal, "run": run}))
    return run


def _is_there(client: MlflowClient, run: str, journal: str) -> bool:
    """Whether MLflow has the run `run`; not if it belongs to another server or database, or MLFLOW_RUN_ID is wrong."""
    if has_run(client, run):
        return True
    log.warning("MLflow has no run %s; the records of %s go into another one", run, journal)
    return False


def _chain(client: MlflowClient, experiment: str, start: dict[str, Any]) -> str:
    """The chain's run of a stage, in state running unless it ended after the stage began."""
    chain = start["chain"].replace("'", "")
    parents = client.search_runs([experiment], f"tags.`{CHAIN}` = '{chain}'", max_results=1)
    parent = parents[0] if parents else client.create_run(experiment, start["time"], {CHAIN: chain}, f"chain {chain}")
    if (parent.info.end_time or 0) <= start["time"]:  # else a later stage has ended it, and this record is late
        client.update_run(parent.info.run_id, status="RUNNING")
    return str(parent.info.run_id)


def _experiment(client: MlflowClient, start: dict[str, Any]) -> str:
    """The id of the experiment: MLFLOW_EXPERIMENT_ID if it exists, else by name.

    The named experiment gets the kind whose view shows runs first, unless somebody chose another.
    """
    from mlflow.exceptions import MlflowException

    if wanted := start.get("experiment_id"):
        try:
            return str(client.get_experiment(wanted).experiment_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            log.warning("MLflow has no experiment %s; the records go into %s", wanted, start["experiment"])
    name = start["experiment"]
    found = client.get_experiment_by_name(name)
    if not found:
        return str(client.create_experiment(name, tags={KIND: KIND_OF_TRAINING}))
    kind = found.tags.get(KIND, "")
    if not kind or "inferred" in kind:  # MLflow's UI stores what it infers, such as no_inferred_type for an empty experiment
        client.set_experiment_tag(found.experiment_id, KIND, KIND_OF_TRAINING)
    return str(found.experiment_id)


def has_run(client: MlflowClient, run: str) -> bool:
    """Whether this MLflow knows the run `run`."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def download(client: MlflowClient, run: str, path: str, folder: Path) -> Path:
    """Download `path` of the artifacts of `run` into `folder`; returns its place there.

    The client's method of that name reports every failure as a possibly wrong path.

    Raises:
        UserError: `folder` has no room for it.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.utils.uri import append_to_uri_path

    place = append_to_uri_path(client.get_run(run).info.artifact_uri, path)
    try:
        return Path(download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=client.tracking_uri))
    except Exception as error:
        why, outage = reason(error)
        if outage or not is_disk_full(error):
            raise
        raise UserError(
            f"{folder.parent} has no room for {path} of MLflow's run {run} ({why}); free some space and run the command again"
        ) from error


def _upload(client: MlflowClient, run: str, path: Path, folder: str) -> None:
    if path.is_dir():
        client.log_artifacts(run, str(path), f"{folder}/{path.name}".strip("/"))
    else:
        client.log_artifact(run, str(path), folder or None)


def _register(client: MlflowClient, run: str, model: Path, record: dict[str, Any]) -> None:
    """Register the model as a version, or find the version of this file; description and alias follow the newest record.

    So a record sent late, because MLflow was down, does not override what was published after it.
    """
    name, time = record["name"], record["time"]
    tags, description = record["tags"] | {PUBLISHED: str(time)}, record.get("description")
    _ensure_registered_model(client, name, record.get("about"))
    versions = client.search_model_versions(f"name = '{name}'")
    newest = max(versions, key=_published, default=None)
    same = [version for version in versions if "sha256" in tags and version.tags.get("sha256") == tags["sha256"]]
    if not same:
        _upload(client, run, model, "")
        source = f"{client.get_run(run).info.artifact_uri}/{model.name}"
        version = client.create_model_version(name, source, run, tags=tags, description=description)
    else:  # publishing the same file again does not create a new version
        version = max(same, key=lambda each: int(each.version))
        if _published(version) <= time:
            for key, value in tags.items():
                client.set_model_version_tag(name, version.version, key, value)
            if description:
                client.update_model_version(name, version.version, description)
    if newest is None or _published(newest) <= time:
        client.set_registered_model_alias(name, record["alias"], version.version)
    elif str(newest.version) != str(version.version):
        log.warning(
            "version %s of %s was published before version %s and sent after it, so it does not become %s",
            version.version,
            name,
            newest.version,
            record["alias"],
        )


def _ensure_registered_model(client: MlflowClient, name: str, about: str | None) -> None:
    """Create the registered model if needed, with the description `about` unless it has one."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if about and not client.get_registered_model(name).description:
            client.update_registered_model(name, about)


def _published(version: ModelVersion) -> int:
    """Time of a version's newest record, milliseconds; its creation time if registered by older code or by others."""
    return int(version.tags.get(PUBLISHED, version.creation_timestamp))
