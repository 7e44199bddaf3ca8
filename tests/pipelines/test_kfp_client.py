"""The real kfp.Client against an API that the tests own."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kfp import compiler, dsl
from kfp_api import KfpApi

from dreamteacher.errors import UserError
from helpers import free_port
from pipelines.__main__ import build_parser
from pipelines.client import Kubeflow, check_cron


@dsl.component(base_image="registry.example/python:1", install_kfp_package=False)
def step(rev: str, number: int):
    pass


@dsl.pipeline(name="pretrain")
def pretrain(data_rev: str, number: int = 1):
    step(rev=data_rev, number=number)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "pretrain.yaml"
    compiler.Compiler().compile(pretrain, str(path))
    return path


@pytest.fixture(autouse=True)
def settings_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("KF_PIPELINES_ENDPOINT", "KFP_NAMESPACE", "KFP_EXISTING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", "none")
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def api() -> Iterator[KfpApi]:
    with KfpApi() as started:
        yield started


def run(api: KfpApi | str, *words: object) -> int:
    url = api if isinstance(api, str) else api.url
    options = build_parser().parse_args([*map(str, words), "--host", url])
    return options.run(options)


def schedules(api: KfpApi) -> list[tuple[str, str, str]]:
    return [(each["display_name"], each["trigger"]["cron_schedule"]["cron"], each["mode"]) for each in api.kept["recurringruns"].values()]


def test_submit_uploads_the_version_and_runs_it(api: KfpApi, package: Path, capsys: pytest.CaptureFixture[str]):
    assert run(api, "submit", package, "--version", "git-1", "--arg", "data_rev=2026", "--arg", "number=7") == 0
    (pipeline,), (version,), (started,) = (list(api.kept[kind].values()) for kind in ("pipelines", "versions", "runs"))
    assert (pipeline["display_name"], version["name"]) == ("pretrain", "git-1")
    assert version["pipeline_spec"]["pipelineInfo"]["name"] == "pretrain"
    reference = {"pipeline_id": pipeline["pipeline_id"], "pipeline_version_id": version["pipeline_version_id"]}
    assert started["pipeline_version_reference"] == reference
    assert started["runtime_config"]["parameters"] == {"data_rev": "2026", "number": 7}  # text stays text
    assert started["display_name"] == "pretrain git-1"
    assert f"{api.url}/#/runs/details/{started['run_id']}" in capsys.readouterr().out


def test_runs_and_schedules_use_the_service_account(api: KfpApi, package: Path):
    words = (package, "--version", "git-1", "--arg", "data_rev=2026", "--service-account", "runner")
    assert run(api, "submit", *words) == run(api, "schedule", *words, "--cron", "0 0 2 * * MON") == 0
    (started,), (schedule,) = (list(api.kept[kind].values()) for kind in ("runs", "recurringruns"))
    assert started["service_account"] == schedule["service_account"] == "runner"


def test_an_api_without_pages_is_not_called_the_page_of_a_run(api: KfpApi, package: Path, capsys: pytest.CaptureFixture[str]):
    api.has_pages = False
    run(api, "submit", package, "--version", "git-1", "--arg", "data_rev=2026")
    (started,) = api.kept["runs"].values()
    assert f"{api.url} has no pages; this run's is /#/runs/details/{started['run_id']} of the user interface" in capsys.readouterr().out


def test_second_submit_uploads_nothing_and_another_package_is_refused(api: KfpApi, package: Path, tmp_path: Path):
    for _ in range(2):
        run(api, "submit", package, "--version", "git-1", "--arg", "data_rev=x")
    assert {kind: len(api.kept[kind]) for kind in api.kept if kind != "recurringruns"} == {
        "pipelines": 1, "experiments": 1, "versions": 1, "runs": 2,
    }  # fmt: skip
    other = tmp_path / "other.yaml"
    other.write_text(package.read_text().replace("registry.example/python:1", "registry.example/python:2"))
    with pytest.raises(UserError, match=r"git-1 of pretrain on .* is another package"):
        run(api, "submit", other, "--version", "git-1", "--arg", "data_rev=x")


def test_version_is_named_after_the_commit_which_must_hold_everything(api: KfpApi, package: Path, tmp_path: Path):
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    with pytest.raises(UserError, match="no git repository"):
        run(api, "submit", package, "--arg", "data_rev=x")
    (tmp_path / "file").write_text("1")
    for command in ("init -q", "add file", "commit -qm one"):
        git(*command.split())
    run(api, "submit", package, "--arg", "data_rev=x")
    assert [each["name"] for each in api.kept["versions"].values()] == [f"git-{git('rev-parse', '--short=12', 'HEAD')}"]
    (tmp_path / "file").write_text("2")
    with pytest.raises(UserError, match="files differ from commit"):
        run(api, "submit", package, "--arg", "data_rev=x")


def test_a_schedule_is_replaced_and_not_duplicated(api: KfpApi, package: Path):
    first = ("schedule", package, "--version", "git-1", "--arg", "data_rev=main")
    run(api, *first, "--cron", "0 0 2 * * MON", "--name", "weekly")
    run(api, *first, "--cron", "0 0 3 * * *", "--name", "other")
    for _ in range(3):
        run(api, *first, "--cron", "0 0 4 * * MON", "--name", "weekly")
    assert sorted(schedules(api)) == [("other", "0 0 3 * * *", "ENABLE"), ("weekly", "0 0 4 * * MON", "ENABLE")]
    weekly = next(each for each in api.kept["recurringruns"].values() if each["display_name"] == "weekly")
    assert (weekly["max_concurrency"], weekly["no_catchup"]) == (1, True)
    assert weekly["runtime_config"]["parameters"] == {"data_rev": "main"}


def test_duplicate_schedules_are_removed_from_all_pages(api: KfpApi, package: Path):
    server = Kubeflow(api.url)
    version = server.upload(package, "git-1")
    for _ in range(5):  # more than two pages of the fake API
        api._create("recurringruns", {"display_name": "weekly", "trigger": {"cron_schedule": {"cron": "0 0 1 * * *"}}, "mode": "ENABLE"})
        api.asked.append(("", ""))  # so that each gets an id of its own
    server.schedule(version, name="weekly", cron="0 0 2 * * *", experiment="e", arguments={})
    assert schedules(api) == [("weekly", "0 0 2 * * *", "ENABLE")]


def test_failed_replacement_leaves_the_old_schedule(api: KfpApi, package: Path):
    words = ("schedule", package, "--version", "git-1", "--arg", "data_rev=main", "--cron", "0 0 2 * * MON")
    run(api, *words)
    before = schedules(api)
    api.fail["POST /recurringruns"] = (500, "InternalServerError: database is locked")
    with pytest.raises(UserError, match="database is locked"):
        run(api, *words)
    assert schedules(api) == before


def test_pause_schedule_again_and_unschedule(api: KfpApi, package: Path, capsys: pytest.CaptureFixture[str]):
    words = ("schedule", package, "--version", "git-1", "--arg", "data_rev=main", "--cron", "0 0 2 * * *")
    run(api, *words)
    run(api, "pause", "pretrain")
    assert schedules(api) == [("pretrain", "0 0 2 * * *", "DISABLE")]
    run(api, "status")
    assert "schedule  pretrain  paused  0 0 2 * * *" in capsys.readouterr().out
    run(api, *words)
    assert schedules(api) == [("pretrain", "0 0 2 * * *", "ENABLE")]
    run(api, "unschedule", "pretrain")
    assert schedules(api) == []
    with pytest.raises(UserError, match="has no schedule 'pretrain'; there is none"):
        run(api, "unschedule", "pretrain")


def test_status_of_an_empty_server_and_of_runs(api: KfpApi, package: Path, capsys: pytest.CaptureFixture[str]):
    run(api, "status")
    assert "no schedule, and no run in experiment dreamteacher" in capsys.readouterr().out
    run(api, "submit", package, "--version", "git-1", "--arg", "data_rev=x", "--name", "first")
    api.kept["runs"][next(iter(api.kept["runs"]))]["state"] = "SUCCEEDED"
    capsys.readouterr()
    run(api, "status")
    assert capsys.readouterr().out.startswith("run  first  SUCCEEDED  2026-01-01 00:00  runs-")


@pytest.mark.parametrize(
    ("status", "message", "said"),
    [
        (403, "User 'a' is not authorized with reason:\n no role", "403 User 'a' is not authorized with reason: no role; ask for the role"),
        (401, "no token", "401 no token; give a token in KFP_EXISTING_TOKEN"),
        (409, "Already exist error", "409 Already exist error"),
        (500, "InternalServerError: " + "x" * 999, "500 InternalServerError: xxx"),
    ],
)
@pytest.mark.parametrize("where", ["GET /healthz", "POST /pipelines/upload_version", "POST /runs"])
def test_refusals_are_one_line(api: KfpApi, package: Path, where: str, status: int, message: str, said: str):
    api.fail[where] = (status, message)
    with pytest.raises(UserError) as caught:
        run(api, "submit", package, "--version", "git-1", "--arg", "data_rev=x")
    text = str(caught.value)
    assert said in text
    assert api.url in text
    assert "\n" not in text
    assert len(text) < 450


def test_unreachable_server_is_one_line(package: Path):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"^cannot connect: {url} cannot be reached .*Connection refused.*; check that it runs") as caught:
        run(url, "status")
    assert "\n" not in str(caught.value)


def test_token_is_sent_and_namespace_asked_for(api: KfpApi, package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "secret")
    monkeypatch.setenv("KFP_NAMESPACE", "team-a")
    run(api, "submit", package, "--version", "git-1", "--arg", "data_rev=x")
    assert api.tokens == {"Bearer secret"}
    for kind in ("pipelines", "experiments"):
        assert [each["namespace"] for each in api.kept[kind].values()] == ["team-a"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arg", "data_rev"], "write it as NAME=VALUE; parameters of .* are data_rev, number"),
        (["--arg", "data_rev=x", "--arg", "nmber=1"], "--arg nmber=1: write it as"),
        ([], "needs --arg data_rev=VALUE"),
        (["--arg", "data_rev=x", "--arg", "number=["], "is not a YAML value"),
    ],
)
def test_bad_arguments_contact_no_server(api: KfpApi, package: Path, words: list[str], said: str):
    with pytest.raises(UserError, match=said):
        run(api, "submit", package, "--version", "v", *words)
    assert api.asked == []


@dsl.pipeline(name="dreamteacher-retrain")
def retrain(data_rev: str = "main", git_url: str = "", settings: list[str] = []):  # noqa: B006
    step(rev=data_rev, number=1)


@pytest.fixture(scope="module")
def retraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "retrain.yaml"
    compiler.Compiler().compile(retrain, str(path))
    return path


def test_a_forgotten_repository_contacts_no_server(api: KfpApi, retraining: Path):
    with pytest.raises(UserError, match="needs --arg git_url=VALUE"):
        run(api, "submit", retraining, "--version", "v")
    assert api.asked == []


@pytest.mark.parametrize("settings", ["[]", '["seed=1"]'])
def test_a_retraining_by_the_clock_needs_a_place_where_pictures_arrive(api: KfpApi, retraining: Path, settings: str):
    words = ["schedule", retraining, "--version", "v", "--cron", "0 0 2 * * MON", "--arg", "data_rev=x", "--arg", "git_url=u"]
    with pytest.raises(UserError, match=r"a scheduled retraining needs retrain\.incoming"):
        run(api, *words, "--arg", f"settings={settings}")
    assert api.asked == []
    assert run(api, *words, "--arg", 'settings=["retrain.incoming=s3://bucket/incoming"]') == 0


def test_what_is_no_package_is_refused(api: KfpApi, tmp_path: Path):
    for name, text in {"missing.yaml": None, "params.yaml": "seed: 0\n", "binary.yaml": "\0"}.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}.*; name a file that `python -m pipelines compile` wrote"):
            run(api, "submit", tmp_path / name)


@pytest.mark.parametrize("cron", ["0 0 2 * * *", "0 */15 8-17 ? JAN-MAR MON,fri", "30 0 0 1 1/3 ?"])
def test_valid_cron_expressions_are_accepted(cron: str):
    check_cron(cron)


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("0 2 * * *", "has 5 fields; KFP needs six, seconds first; did you mean '0 0 2 * * *'?"),
        ("@daily", "has 1 fields; KFP needs six"),
        ("0 60 * * * *", "'60' is not a valid minute; use * or 0 to 59"),
        ("0 0 2 * * 7", "'7' is not a valid day of week; use * or 0 to 6, or SUN to SAT"),
        ("0 0 2 0 * *", "'0' is not a valid day of month"),
        ("0 0 5-2 * * *", "'5-2' is not a valid hour"),
        ("0 0 */0 * * *", "'*/0' is not a valid hour"),
        ("0 0 2 * FOO *", "'FOO' is not a valid month"),
        ("0 0 2, * * *", "'' is not a valid hour"),
    ],
)  # fmt: skip
def test_invalid_cron_expressions_are_refused_with_what_is_possible(cron: str, said: str):
    with pytest.raises(UserError) as caught:
        check_cron(cron)
    assert said in str(caught.value)
