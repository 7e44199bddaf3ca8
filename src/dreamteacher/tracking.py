"""MLflow, in one place. Every record is first appended to a journal on disk, from which it is sent in batches.

A server that is down therefore costs no record and stops no stage: the journal stays until `dreamteacher sync` sends it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamteacher.errors import Interrupted, UserError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

UNSENT = Path(".dreamteacher/unsent")
RECORDS = "records.jsonl"
SEND_EVERY = 10.0  # seconds


class Tracker:
    """What a stage tells about itself. Without a journal it keeps nothing: tracking off, or a process that is not the first."""

    def __init__(self, journal: Path | None = None):
        self._journal = journal
        self._next_send = 0.0
        self._warned = False

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Record figures, with the optimiser step they belong to if there is one."""
        self._record(do="metrics", values={_key(name): float(value) for name, value in values.items()}, step=step or 0)
        if time.monotonic() >= self._next_send:
            self._send()

    def tags(self, values: dict[str, str]) -> None:
        """Record words about the run."""
        self._record(do="tags", values={_key(name): str(value) for name, value in values.items()})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a small file, or all of a small folder (plots, sample grids, stage.json), below `folder` of the run's artifacts."""
        if self._journal:
            self._record(do="artifact", file=self._keep(path), folder=folder)

    def register(self, model: Path, name: str, *, alias: str, tags: dict[str, str]) -> None:
        """Record an MLflow model folder (as `mlflow.onnx.save_model` writes it) as a new version of `name` that bears `alias`."""
        if self._journal:
            named = {_key(key): value for key, value in tags.items()}
            self._record(do="register", file=self._keep(model), name=name, alias=alias, tags=named)

    def _record(self, **record: Any) -> None:
        if self._journal:
            with (self._journal / RECORDS).open("a") as file:
                file.write(json.dumps(record | {"time": _now()}) + "\n")

    def _keep(self, path: Path) -> str:
        """Copy `path` into the journal, since stages rename and remove what they wrote."""
        assert self._journal
        place = self._journal / "files" / str(len(list(self._journal.glob("files/*"))))
        place.mkdir(parents=True)
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, place / path.name)
        return str((place / path.name).relative_to(self._journal))

    def _send(self) -> None:
        """Send what is new. Whatever MLflow's client raises must not stop a stage that has worked for hours."""
        if not self._journal:
            return
        begin = time.monotonic()
        try:
            _send(self._journal)
        except Exception as error:
            if not self._warned:
                log.warning("%s; the stage goes on, its records stay in %s: `dreamteacher sync` sends them", _why(error), self._journal)
            self._warned = True
        now = time.monotonic()
        self._next_send = now + max(SEND_EVERY, 20 * (now - begin))  # a slow server may cost at most 5 % of the time

    def _close(self, status: str) -> None:
        self._record(do="end", status=status)
        self._send()
        if self._journal and _is_sent(self._journal):
            shutil.rmtree(self._journal)


@contextmanager
def open_tracker(stage: str, params: dict[str, Any], tags: dict[str, str], memory: Path | None = None) -> Iterator[Tracker]:
    """Track one stage as an MLflow run: a child of the chain's run, or the run that MLFLOW_RUN_ID names.

    `memory` is a file beside the checkpoints, by which a stage that was killed finds its run again. The run ends as
    FINISHED, FAILED (an exception) or KILLED (a signal). DREAMTEACHER_TRACKING=off gives a tracker that keeps nothing.
    """
    if os.environ.get("DREAMTEACHER_TRACKING") == "off":
        yield Tracker()
        return
    known = json.loads(memory.read_text()) if memory and memory.exists() else {}
    journal = UNSENT / known.get("journal", "")
    if not (known and (journal / RECORDS).exists()):
        journal = UNSENT / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        journal.mkdir(parents=True)
    _drop_torn_line(journal)
    commit, dirty = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    tracker = Tracker(journal)
    with _held(journal):
        tracker._record(
            do="start",
            run=known.get("run") or os.environ.get("MLFLOW_RUN_ID"),
            name=" ".join([stage, *(f"{key}={params[key]}" for key in ("mode", "init", "seed") if key in params)]),
            chain=os.environ.get("DREAMTEACHER_CHAIN") or os.environ.get("DVC_EXP_NAME") or commit[:7] or "adhoc",
            experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME", "dreamteacher"),
            uri=without_password(tracking_uri()),
            memory=str(memory.absolute()) if memory else None,
        )
        if memory:
            memory.write_text(json.dumps(known | {"journal": journal.name}))
        about = {"dreamteacher.stage": stage, "mlflow.source.name": f"dreamteacher {stage}"}
        if commit:
            about |= {"mlflow.source.git.commit": commit, "dreamteacher.git.dirty": str(bool(dirty)).lower()}
        tracker.tags(about | tags)
        tracker._record(do="params", values=_flat(params))
        tracker._send()
        try:
            yield tracker
        except (KeyboardInterrupt, SystemExit, Interrupted):
            tracker._close("KILLED")
            raise
        except BaseException:
            tracker._close("FAILED")
            raise
        tracker._close("FINISHED")


def sync() -> list[str]:
    """Send the journals that no running stage is writing; returns the names of those sent, which are gone from disk.

    A journal without an end is that of a stage killed outright; its run ends as KILLED.

    Raises:
        UserError: MLflow does not take them; they stay.
    """
    sent = []
    for journal in sorted(path.parent for path in UNSENT.glob(f"*/{RECORDS}")):
        try:
            with _held(journal):
                _drop_torn_line(journal)
                if _records(journal)[-1]["do"] != "end":
                    Tracker(journal)._record(do="end", status="KILLED")
                _send(journal)
                shutil.rmtree(journal)
                sent.append(journal.name)
        except BlockingIOError:
            log.info("%s is being written by a running stage", journal)
        except Exception as error:
            raise UserError(f"{_why(error)}; {journal} stays unsent") from error
    return sent


def _send(journal: Path) -> None:
    """Replay what the cursor has not passed; the cursor moves with every batch, so that nothing is sent twice."""
    cursor_file = journal / "cursor.json"
    cursor: dict[str, Any] = json.loads(cursor_file.read_text()) if cursor_file.exists() else {"sent": 0, "run": None}
    records = _records(journal)
    with _first_alone():
        client = _client(os.environ.get("MLFLOW_TRACKING_URI", records[0]["uri"]))
    while unsent := records[cursor["sent"] :]:
        record = unsent[0]
        batch = list(takewhile(lambda other: other["do"] == "metrics", unsent[:1000])) or [record]
        if record["do"] == "start":
            with _first_alone():
                cursor["run"] = _find_or_create_run(client, record, cursor["run"], journal.name)
        else:
            _replay(client, cursor["run"], batch, journal)
        cursor["sent"] += len(batch)
        fresh = cursor_file.with_suffix(".tmp")
        fresh.write_text(json.dumps(cursor))
        fresh.rename(cursor_file)


def _replay(client: MlflowClient, run: str, batch: list[dict[str, Any]], journal: Path) -> None:
    """Send one record, or many consecutive ones of metrics (MLflow takes 1000 values a request, and 100 parameters)."""
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    record = batch[0]
    try:
        match record["do"]:
            case "metrics":
                metrics = [Metric(key, value, one["time"], one["step"]) for one in batch for key, value in one["values"].items()]
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
                parent = client.get_run(run).data.tags.get("mlflow.parentRunId")
                for ended in filter(None, [run, parent]):
                    client.set_terminated(ended, record["status"], record["time"])
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        # Refused for good (the named run has another value of a parameter, say): it must not hold up the rest.
        log.warning("MLflow refuses the %s of %s: %s", record["do"], journal.name, str(error).splitlines()[0])


def _find_or_create_run(client: MlflowClient, start: dict[str, Any], run: str | None, journal: str) -> str:
    """The run that the journal's records belong to, running: known, named, made by an earlier try, or new below the chain's run."""
    run = run or start["run"]
    if not run:
        found = client.get_experiment_by_name(start["experiment"])
        experiment = found.experiment_id if found else client.create_experiment(start["experiment"])
        earlier = client.search_runs([experiment], f"tags.`dreamteacher.journal` = '{journal}'", max_results=1)
        if earlier:
            run = earlier[0].info.run_id
        else:
            chain = start["chain"].replace("'", "")
            parents = client.search_runs([experiment], f"tags.`dreamteacher.chain` = '{chain}'", max_results=1)
            parent = (
                parents[0] if parents else client.create_run(experiment, start["time"], {"dreamteacher.chain": chain}, f"chain {chain}")
            )
            client.update_run(parent.info.run_id, status="RUNNING")
            tags = {"mlflow.parentRunId": parent.info.run_id, "dreamteacher.journal": journal}
            run = client.create_run(experiment, start["time"], tags, start["name"]).info.run_id
    client.update_run(run, status="RUNNING")
    if start["memory"]:
        with suppress(FileNotFoundError):  # the stage has ended since, and its checkpoints are gone
            Path(start["memory"]).write_text(json.dumps({"journal": journal, "run": run}))
    return run


def _upload(client: MlflowClient, run: str, path: Path, folder: str) -> None:
    if path.is_dir():
        client.log_artifacts(run, str(path), f"{folder}/{path.name}".strip("/"))
    else:
        client.log_artifact(run, str(path), folder or None)


def _register(client: MlflowClient, run: str, model: Path, record: dict[str, Any]) -> None:
    from mlflow.exceptions import MlflowException

    name, tags = record["name"], record["tags"]
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # The same file published again is no new version: its newest version gets the new tags and the alias.
    known = client.search_model_versions(f"name = '{name}'")
    same = [version for version in known if "sha256" in tags and version.tags.get("sha256") == tags["sha256"]]
    if same:
        version = max(same, key=lambda each: int(each.version))
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, value)
    else:
        _upload(client, run, model, "")
        version = client.create_model_version(name, f"{client.get_run(run).info.artifact_uri}/{model.name}", run, tags=tags)
    client.set_registered_model_alias(name, record["alias"], version.version)


def connect() -> MlflowClient:
    """A client of MLflow and its registry, for what is asked rather than told."""
    return _client(tracking_uri())


def _client(uri: str) -> MlflowClient:
    # A stage must not hang on a server that is gone: MLflow's own defaults are 7 tries of 120 s.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow.tracking import MlflowClient

    for chatty in ("alembic", "mlflow", "urllib3.connectionpool"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    return MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI", uri))  # makes or migrates the tables of a database


@contextmanager
def _held(journal: Path) -> Iterator[None]:
    """The journal is this process' alone meanwhile. Raises BlockingIOError when another has it."""
    with (journal / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def _first_alone() -> Iterator[None]:
    """One process of this folder at a time: two that begin together would both set up MLflow's database, and the chain's run."""
    with UNSENT.with_name("lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _records(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (journal / RECORDS).read_text().splitlines()]


def _is_sent(journal: Path) -> bool:
    cursor = journal / "cursor.json"
    return cursor.exists() and json.loads(cursor.read_text())["sent"] == len(_records(journal))


def _drop_torn_line(journal: Path) -> None:
    """A process killed in the middle of a line leaves a half one, to which nothing must be appended."""
    path = journal / RECORDS
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return flat


def _key(name: str) -> str:
    """MLflow's names hold letters, digits and _ - . / : space."""
    return re.sub(r"[^\w\-./: ]", "_", name)


def _why(error: Exception) -> str:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return without_password(f"MLflow at {tracking_uri()} does not take the records ({reason})")


def tracking_uri() -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, else a database in the current directory, which stays the same wherever `sync` is called."""
    return os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{Path('mlflow.db').absolute()}")


def without_password(text: str) -> str:
    """`text` without the user and password of the URLs in it."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def git(*command: str) -> str:
    """What git says of the current directory; "" where there is no git or no repository."""
    try:
        return subprocess.run(["git", *command], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _now() -> int:
    return int(time.time() * 1000)
