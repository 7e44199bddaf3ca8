"""Tracking of stages in MLflow. Every record is first appended to a journal on disk, and sent from there in batches.

So if the server is down, no record is lost and no stage stops: the journal stays until `dreamteacher sync` sends it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from dreamteacher.errors import Interrupted
from dreamteacher.files import append_line, read_note, replace_file
from dreamteacher.git_access import output_of
from dreamteacher.graph import IDENTITY
from dreamteacher.locks import is_locked, lock
from dreamteacher.mlflow_server import DIGEST, client_of, find_or_create_run, has_run, logged_steps, replay, tracking_uri, without_password
from dreamteacher.outages import reason, refusal
from dreamteacher.project_root import project_folder

log = logging.getLogger(__name__)

UNSENT = Path(".dreamteacher/unsent")  # below the project's folder
RECORDS = "records.jsonl"
LOCK = "lock"  # of a journal: its stage is running, or it is being sent
SEND_EVERY = 10.0  # seconds
LATER = 60.0  # seconds; see is_sent_later
CHAIN = ("DREAMTEACHER_CHAIN", "DVC_EXP_NAME", "DREAMTEACHER_RUN")  # environment variables that name the run; the first one set is used
# Environment variables that name the run of a step's process: KFP's MLflow plugin's, and ours.
OF_THE_RUN = ("KFP_MLFLOW_CONFIG", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_WORKSPACE", "MLFLOW_TRACKING_AUTH", "DREAMTEACHER_RUN")


class Tracker:
    """Records of a stage. Without a journal it records nothing: tracking is off, or this is not the first process."""

    def __init__(self, journal: Path | None = None):
        self._journal = journal
        # A short stage sends only once, at its end, since importing mlflow takes seconds.
        self._next_send = time.monotonic() + (LATER if is_sent_later() else SEND_EVERY)
        self._sends = False
        self._warned = False
        self._curves = set[str]()

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Record metrics with their optimiser step, or final ones without; a final value is skipped if the metric has a curve."""
        if step is None:
            values = {name: value for name, value in values.items() if name not in self._curves}
        else:
            self._curves |= values.keys()
        self._record(do="metrics", values={_key(name): float(value) for name, value in values.items()}, step=step or 0)
        if time.monotonic() >= self._next_send:
            self._send()

    def tags(self, values: dict[str, str]) -> None:
        """Record tags of the run."""
        self._record(do="tags", values={_key(name): str(value) for name, value in values.items()})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a small file or folder (plots, sample grids, stage.json) as artifacts below `folder`."""
        if self._journal:
            self._record(do="artifact", file=self._keep(path), folder=folder)

    def register(self, model: Path, name: str, *, alias: str, tags: dict[str, str], description: str = "", about: str = "") -> None:
        """Record an MLflow model folder (as `mlflow.onnx.save_model` writes it) as a new version of `name` with `alias`.

        `description` (Markdown) describes the version; `about` the registered model, if it has no description.
        """
        if self._journal:
            named = {_key(key): value for key, value in tags.items()}
            self._record(do="register", file=self._keep(model), name=name, alias=alias, tags=named, description=description, about=about)

    def _record(self, **record: Any) -> None:
        if self._journal:
            append_line(self._journal / RECORDS, json.dumps(record | {"time": _now()}))

    def _keep(self, path: Path) -> str:
        """Copy `path` into the journal, since stages rename and remove their files."""
        assert self._journal
        place = self._journal / "files" / str(len(list(self._journal.glob("files/*"))))
        place.mkdir(parents=True)
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, place / path.name)
        return str((place / path.name).relative_to(self._journal))

    def _send(self) -> None:
        """Send new records. Errors of MLflow's client must not stop a stage that has run for hours."""
        if not self._journal:
            return
        self._sends = True
        begin = time.monotonic()
        try:
            _send(self._journal)
        except Exception as error:
            if not self._warned:
                log.warning(
                    "%s; the stage continues, its records stay in %s until `dreamteacher sync` sends them",
                    _why(error, self._journal),
                    self._journal,
                )
            self._warned = True
        now = time.monotonic()
        self._next_send = now + max(SEND_EVERY, 20 * (now - begin))  # sending may take at most 5 % of the time

    def _close(self, status: str) -> None:
        self._record(do="end", status=status)
        if is_sent_later() and not self._sends:
            return
        self._send()
        if self._journal and _is_sent(self._journal):
            shutil.rmtree(self._journal)


def is_on() -> bool:
    """Whether tracking is on: not with DREAMTEACHER_TRACKING=off."""
    return os.environ.get("DREAMTEACHER_TRACKING") != "off"


def is_sent_later() -> bool:
    """Whether `sync` is called once after all stages (DREAMTEACHER_TRACKING=later), instead of in each stage.

    A stage that takes longer than LATER sends anyway, so that its curves can be watched.
    """
    return os.environ.get("DREAMTEACHER_TRACKING") == "later"


@contextmanager
def open_tracker(stage: str, params: dict[str, Any], tags: dict[str, str], memory: Path | None = None) -> Iterator[Tracker]:
    """Track one stage as an MLflow run: the run MLFLOW_RUN_ID, or a child of the chain's run.

    KFP's MLflow plugin creates a run for the step and logs the step's parameters and metrics to it. It logs parameters as JSON, so in that
    run ours are JSON too, because MLflow does not allow a second value of a parameter. If the plugin names only the pipeline's run, that is
    the chain's run.

    The run appears in MLflow with the first metrics after SEND_EVERY, or when it ends. `memory` is a file beside the checkpoints, from
    which a killed stage finds its run again. The run ends as FINISHED, FAILED (an exception) or KILLED (a signal). With
    DREAMTEACHER_TRACKING=off the tracker records nothing; for `later` see is_sent_later.
    """
    if not is_on():
        yield Tracker()
        return
    known = read_note(memory) if memory else {}
    kfp = _kfp()
    commit = output_of("git", "rev-parse", "HEAD")
    dirty = output_of("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    with _journal_of(stage, known) as journal:
        tracker = Tracker(journal)
        tracker._record(
            do="start",
            run=os.environ.get("MLFLOW_RUN_ID"),
            before=known.get("run"),
            name=" ".join([stage, *(f"{key}={params[key]}" for key in IDENTITY if key in params)]),
            chain=next(filter(None, [*(os.environ.get(name) for name in CHAIN), commit[:7]]), "adhoc"),
            parent=kfp.get("parentRunId"),
            experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME", "dreamteacher"),
            experiment_id=os.environ.get("MLFLOW_EXPERIMENT_ID"),
            digest=tags.get(DIGEST),
            uri=without_password(tracking_uri()),
            memory=str(memory.absolute()) if memory else None,
        )
        if memory:
            replace_file(memory, json.dumps(known | {"journal": journal.name}))
        about = {"dreamteacher.stage": stage, "mlflow.source.name": f"dreamteacher {stage}"}
        if commit:
            about |= {"mlflow.source.git.commit": commit, "dreamteacher.git.dirty": str(bool(dirty)).lower()}
        tracker.tags(about | tags)
        is_shared = "MLFLOW_RUN_ID" in os.environ and bool(kfp or "DREAMTEACHER_RUN" in os.environ)
        values = {key: json.dumps(value, ensure_ascii=False, default=str) if is_shared else str(value) for key, value in params.items()}
        tracker._record(do="params", values=values)
        try:
            yield tracker
        except BaseException as error:
            with suppress(OSError):  # a full disk; `sync` ends a journal without an end
                tracker._close("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit | Interrupted) else "FAILED")
            raise
        tracker._close("FINISHED")


@contextmanager
def _journal_of(stage: str, known: dict[str, Any]) -> Iterator[Path]:
    """The journal of the killed stage that `known` names, or a new one, locked for this process."""
    unsent = project_folder() / UNSENT
    if "journal" in known:
        journal = unsent / known["journal"]
        with lock(journal / LOCK) as mine:  # unless it is being sent right now
            if mine and (journal / RECORDS).exists():
                _drop_torn_line(journal)
                yield journal
                return
    # in containers every process may have the same pid
    journal = unsent / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}-{os.getpid()}"
    journal.mkdir(parents=True)
    with lock(journal / LOCK):
        yield journal


def _kfp() -> dict[str, Any]:
    """KFP_MLFLOW_CONFIG of KFP's MLflow plugin: endpoint, experimentId, parentRunId (the pipeline's run); empty without the plugin."""
    try:
        config = json.loads(os.environ.get("KFP_MLFLOW_CONFIG") or "{}")
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def sync() -> list[str]:
    """Send the journals of all stages that are not running; returns the names of those sent, which are deleted.

    A journal without an end belongs to a stage killed by SIGKILL; its run ends as KILLED.

    Raises:
        UserError: MLflow refused some, which are kept; the others are sent. A NoAnswer if the first would have to be retried.
    """
    sent, failed = list[str](), dict[str, Exception]()
    for journal in sorted(path.parent for path in (project_folder() / UNSENT).glob(f"*/{RECORDS}")):
        try:
            with lock(journal / LOCK) as mine:
                if not mine:
                    log.info("%s is in use by another process", journal)
                    continue
                _drop_torn_line(journal)
                if records := _records(journal):  # empty: killed before the first record was complete
                    if records[-1]["do"] != "end":
                        Tracker(journal)._record(do="end", status="KILLED")
                    _send(journal)
                    sent.append(journal.name)
                shutil.rmtree(journal)
        except Exception as error:
            failed[f"{_why(error, journal)}; {journal} stays unsent"] = error
    if failed:
        first, cause = next(iter(failed.items()))
        raise refusal(cause, lambda _: f"{first} ({len(failed)} in all; {len(sent)} were sent)") from cause
    return sent


def unsent_stages() -> tuple[int, int]:
    """How many stages that ended have records to send, and how many are running."""
    running = [is_locked(path.with_name(LOCK)) for path in (project_folder() / UNSENT).glob(f"*/{RECORDS}")]
    return running.count(False), running.count(True)


def _send(journal: Path) -> None:
    """Send the records after the cursor, which moves with every batch, so that nothing is sent twice."""
    cursor_file = journal / "cursor.json"
    nothing: dict[str, Any] = {"sent": 0, "run": None, "logged": {}}
    cursor = nothing | read_note(cursor_file)
    records = _records(journal)
    with _first_alone():
        client = client_of(_place_of(journal))
    if cursor["run"] and not has_run(client, cursor["run"]):  # a different server, which has no records yet
        cursor = nothing
    while unsent := records[cursor["sent"] :]:
        record = unsent[0]
        batch = list(takewhile(lambda other: other["do"] == "metrics", unsent[:1000])) or [record]
        if record["do"] == "start":
            with _first_alone():
                cursor["run"] = find_or_create_run(client, record, cursor["run"], journal.name)
            cursor["logged"] = logged_steps(client, cursor["run"], record.get("digest"))
        else:
            replay(client, cursor["run"], batch, journal, cursor["logged"])
        cursor["sent"] += len(batch)
        replace_file(cursor_file, json.dumps(cursor))


@contextmanager
def _first_alone() -> Iterator[None]:
    """Lock per folder: two processes that start together would both create MLflow's database and the chain's run."""
    with lock((project_folder() / UNSENT).with_name("lock"), wait=True):
        yield


def _records(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (journal / RECORDS).read_text().splitlines()]


def _place_of(journal: Path) -> str:
    """The configured MLflow URI, else the one recorded in the journal."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        return tracking_uri()
    with (journal / RECORDS).open() as lines:
        return str(json.loads(next(lines))["uri"])


def _is_sent(journal: Path) -> bool:
    return bool(read_note(journal / "cursor.json").get("sent") == len(_records(journal)))


def _drop_torn_line(journal: Path) -> None:
    """Remove the incomplete last line of a killed process, before appending."""
    path = journal / RECORDS
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)  # needs no disk space, unlike rewriting the file


def _key(name: str) -> str:
    """A name valid in MLflow: letters, digits and _ - . / : space."""
    return re.sub(r"[^\w\-./: ]", "_", name)


def _why(error: Exception, journal: Path) -> str:
    return without_password(f"MLflow at {_place_of(journal)} does not accept the records ({reason(error)[0]})")


def _now() -> int:
    return int(time.time() * 1000)
