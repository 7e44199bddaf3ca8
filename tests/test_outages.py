"""Outages that are waited for, how long, and errors that are raised at once. Texts of git 2.39, DVC 3.67, MLflow 3.17 and boto3 1.43."""

import logging
import sqlite3
import subprocess
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from dreamteacher import outages
from dreamteacher.errors import UserError
from dreamteacher.outages import GivenUp, NoAnswer, is_outage, patient, refusal
from dreamteacher.versioning import Clone
from helpers import free_port


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of waiting; thirty minutes of it are there."""
    monkeypatch.delenv(outages.MINUTES)
    clock = Clock()
    monkeypatch.setattr(outages, "time", clock)
    return clock


@pytest.mark.parametrize(
    "text",
    [
        "fatal: unable to access 'https://git.example.org/a.git/': Could not resolve host: git.example.org",
        "fatal: unable to access 'http://127.0.0.1:9/a/': Failed to connect to 127.0.0.1 port 9 after 0 ms: Couldn't connect to server",
        "fatal: unable to access 'https://git.example.org/a.git/': The requested URL returned error: 503",
        "fatal: unable to access 'https://git.example.org/a.git/': The requested URL returned error: 429",
        "error: RPC failed; HTTP 502 curl 22 The requested URL returned error: 502\nfatal: the remote end hung up unexpectedly",
        "error: RPC failed; curl 28 Operation too slow. Less than 1 bytes/sec transferred the last 600 seconds",
        "ssh: connect to host git.example.org port 22: Connection timed out\nfatal: Could not read from remote repository.",
        "ssh: Could not resolve hostname git.example.org: Temporary failure in name resolution",
        'ERROR: unexpected error - Could not connect to the endpoint URL: "http://127.0.0.1:9/models/v/files/md5/78/e0.dir"',
        'ERROR: failed to connect to s3 (models/v/files/md5) - Could not connect to the endpoint URL: "http://s3.invalid:9/models"',
        "ERROR: unexpected error - An error occurred (SlowDown) when calling the PutObject operation: Please reduce your request rate.",
        "ClientError: An error occurred (503) when calling the PutObject operation (reached max retries: 0): Service Unavailable",
        "ReadTimeoutError: Read timeout on endpoint URL: http://s3/b/k",
        "ConnectionRefusedError: [Errno 111] Connection refused",
        "ResponseError: too many 503 error responses",
        "ReadTimeout: HTTPConnectionPool(host='mlflow', port=5000): Read timed out. (read timeout=10)",
        'OperationalError: (psycopg.OperationalError) connection failed: could not translate host name "db" to address',
        "OperationalError: (sqlite3.OperationalError) database is locked",
    ],
)
def test_what_waiting_can_mend_is_an_outage(text: str):
    assert is_outage(text)


@pytest.mark.parametrize(
    "text",
    [
        "fatal: unable to access 'https://git.example.org/a.git/': The requested URL returned error: 403",
        "fatal: Authentication failed for 'https://git.example.org/a.git/'",
        "remote: Repository not found.\nfatal: repository 'https://git.example.org/a.git/' not found",
        "fatal: couldn't find remote ref timeout: fix",
        "git@git.example.org: Permission denied (publickey).\nfatal: The remote end hung up unexpectedly",
        " ! [rejected]        HEAD -> main (non-fast-forward)\nerror: failed to push some refs",
        "fatal: unable to access 'https://git.example.org/a/': SSL certificate problem: self-signed certificate",
        "ERROR: failed to connect to s3 (models/v) - The AWS Access Key Id you provided does not exist in our records.",
        "ERROR: unexpected error - Forbidden: An error occurred (403) when calling the HeadObject operation: Forbidden",
        "ERROR: failed to pull data from the cloud - Checkout failed for following targets: data",
        "ClientError: An error occurred (501) when calling the PutObject operation: Not Implemented",
        "MlflowException: API request to endpoint /api/2.0/mlflow/runs/get failed with error code 401 != 200. Response body: 'no'",
        "SSLError: HTTPSConnectionPool(host='m', port=443): Max retries exceeded (Caused by SSLError('WRONG_VERSION_NUMBER'))",
        "RestException: RESOURCE_DOES_NOT_EXIST: Run with id=x not found",
    ],
)
def test_what_waiting_cannot_mend_is_none(text: str):
    assert not is_outage(text)


def test_an_error_is_an_outage_by_what_caused_it():
    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError:
            raise ValueError("API request failed") from None
    except ValueError as error:
        found = refusal(error, lambda why: f"MLflow: {why}")
    assert isinstance(found, NoAnswer)
    assert str(found) == "MLflow: [Errno 111] Connection refused"
    assert not isinstance(refusal(ValueError("no"), str), NoAnswer)


def test_the_pauses_double_and_each_says_what_is_waited_for_and_when_the_next_try_is(clock: Clock, caplog: pytest.LogCaptureFixture):
    answers = [False] * 4 + [True]

    @patient
    def push(branch: str) -> str:
        if not answers.pop(0):
            raise NoAnswer("git push failed: Could not resolve host: git.example.org")
        return branch

    caplog.set_level(logging.WARNING, "dreamteacher")
    assert push("runs/1") == "runs/1"
    assert clock.pauses == [10, 20, 40, 80]
    assert caplog.messages[1] == (
        "git push failed: Could not resolve host: git.example.org; next try in 20 s, for 30 more minutes at most (Ctrl-C ends it)"
    )


def test_waiting_ends_after_the_minutes_that_are_set_and_is_not_begun_anew_by_the_caller(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    @patient
    def inner() -> None:
        raise NoAnswer("MLflow does not answer")

    outer = patient(inner)
    with pytest.raises(GivenUp, match=r"^MLflow does not answer; waited 30 minutes for it \(DREAMTEACHER_WAIT_MINUTES\)$"):
        outer()
    assert sum(clock.pauses) == 30 * 60
    assert max(clock.pauses) == 300
    monkeypatch.setenv(outages.MINUTES, "0")
    with pytest.raises(GivenUp, match=r"^MLflow does not answer$"):
        outer()
    assert sum(clock.pauses) == 30 * 60


def test_what_waiting_cannot_mend_ends_at_once(clock: Clock):
    @patient
    def refused() -> None:
        raise UserError("401")

    with pytest.raises(UserError, match="401"):
        refused()
    assert clock.pauses == []


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_invalid_minutes_are_refused(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv(outages.MINUTES, text)
    with pytest.raises(UserError, match=f"^DREAMTEACHER_WAIT_MINUTES = {text} is not a number of minutes"):
        patient(lambda: None)()


def test_git_is_retried_until_its_server_is_back(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repository, settings, url = tmp_path / "repository", tmp_path / "gitconfig", f"http://127.0.0.1:{free_port()}/"
    who = ("-c", "user.email=a@b.c", "-c", "user.name=a", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", "one"], cwd=repository, check=True)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    settings.touch()
    sleep = clock.sleep

    def back(seconds: float) -> None:
        sleep(seconds)
        if len(clock.pauses) == 2:
            settings.write_text(f'[url "{repository.as_uri()}"]\n insteadOf = {url}\n')

    monkeypatch.setattr(clock, "sleep", back)
    assert len(Clone(url, "HEAD", tmp_path / "clone").commit) == 40
    assert clock.pauses == [10, 20]


def test_a_git_server_that_stays_away_is_waited_for_once(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(outages.MINUTES, "1")
    with pytest.raises(UserError, match=r"^cannot read git repository http://127.0.0.1:\d+/: git fetch failed: .*waited 1 minutes for it"):
        Clone(f"http://127.0.0.1:{free_port()}/", "HEAD", tmp_path / "clone")
    assert sum(clock.pauses) == 60


def test_errors_of_a_database_show_the_cause_without_sql() -> None:
    cause = sqlite3.OperationalError("database or disk is full")
    wrapped = OperationalError("INSERT INTO runs", {}, cause)
    wrapped.add_detail("raised as a result of Query-invoked autoflush")
    wrapped.__cause__ = cause
    assert str(wrapped).startswith("(raised as a result of")
    error = RuntimeError(str(wrapped))
    error.__cause__ = wrapped
    assert outages.reason(error) == ("database or disk is full", False)
