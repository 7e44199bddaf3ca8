"""`python -m pipelines submit|schedule|pause|unschedule|status|check`: commands on the KFP API and the cluster."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dreamteacher.errors import UserError
from dreamteacher.git_access import output_of

if TYPE_CHECKING:
    from pipelines.client import Kubeflow, Version


def add_commands(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    """Add the commands to those of `python -m pipelines`; `add` takes name, function and help."""
    submit = add("submit", _submit, "upload a compiled pipeline and start a run")
    _add_package(submit)
    submit.add_argument("--name", help="name of the run (default: pipeline and version)")
    schedule = add("schedule", _schedule, "upload a compiled pipeline and schedule it; replaces a schedule of the same name")
    _add_package(schedule)
    schedule.add_argument(
        "--cron", required=True, help="six fields, seconds first: '0 0 2 * * MON' is Mondays at 2 (UTC, unless set in KFP)"
    )
    schedule.add_argument("--name", help="name of the schedule (default: the pipeline's)")
    for name, run, text in (
        ("pause", _pause, "pause a schedule until `schedule` is run again"),
        ("unschedule", _unschedule, "delete a schedule; its runs are kept"),
    ):
        command = add(name, run, text)
        command.add_argument("name", help="name of the schedule, as printed by `status`")
        _add_server(command)
    check = add("check", _check, "check that the cluster has what a profile needs; DREAMTEACHER_IMAGE names the image")
    check.add_argument(
        "--profile", default="single-gpu", help="profile in resources.yaml of this folder, else of the package (default: %(default)s)"
    )
    check.add_argument("--context", help="context of the kubeconfig (default: the current one)")
    check.add_argument("--namespace", help="namespace of the runs (default: KFP_NAMESPACE, else kubeflow)")
    check.add_argument("--kfp-namespace", default="kubeflow", help="namespace of Kubeflow Pipelines itself (default: %(default)s)")
    check.add_argument("--service-account", help="service account of the runs' pods (default: KFP's)")
    check.add_argument("--host", help="URL of the KFP API, which is then checked too (default: KF_PIPELINES_ENDPOINT)")
    check.add_argument("--no-pod", action="store_true", help="skip the trial pod, which checks image, volume, MLflow and S3")
    check.add_argument(
        "--wait", type=int, default=600, metavar="SECONDS", help="time limit of the trial pod, image pull included (default: %(default)s)"
    )
    status = add("status", _status, "list the schedules and the newest runs")
    _add_server(status)


def _add_package(command: argparse.ArgumentParser) -> None:
    command.add_argument("package", type=Path, help="output of `python -m pipelines compile`")
    command.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the pipeline; repeatable")
    command.add_argument("--version", help="name of the pipeline's version (default: git-COMMIT)")
    command.add_argument("--service-account", help="service account of the run's pods (default: KFP's)")
    _add_server(command)


def _add_server(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", help="URL of the KFP API (default: KF_PIPELINES_ENDPOINT); a token is read from KFP_EXISTING_TOKEN")
    command.add_argument("--namespace", help="your namespace in a multi-user KFP (default: KFP_NAMESPACE)")
    command.add_argument("--experiment", default="dreamteacher", help="experiment of the runs (default: %(default)s)")


def _submit(options: argparse.Namespace) -> int:
    arguments = _arguments(options)
    server = _server(options)
    _warn(options)
    version = _upload(server, options)
    name = options.name or f"{version.pipeline} {version.name}"
    run = server.run(version, name=name, experiment=options.experiment, arguments=arguments, service_account=options.service_account)
    elsewhere = f"{server.host} has no pages; this run's is /#/runs/details/{run} of the user interface (svc/ml-pipeline-ui)"
    print(f"{version.pipeline} {version.name}: run {run}\n{server.page_of(run) or elsewhere}")
    return 0


def _schedule(options: argparse.Namespace) -> int:
    from pipelines.client import check_cron

    check_cron(options.cron)
    arguments = _arguments(options)
    _check_incoming(options.package, arguments)
    server = _server(options)
    _warn(options)
    version = _upload(server, options)
    name = options.name or version.pipeline
    server.schedule(
        version,
        name=name,
        cron=options.cron,
        experiment=options.experiment,
        arguments=arguments,
        service_account=options.service_account,
    )
    print(f"{name}: {version.pipeline} {version.name} at {options.cron}")
    return 0


def _pause(options: argparse.Namespace) -> int:
    _server(options).pause(options.name)
    print(f"{options.name}: paused; run `schedule` again to resume it")
    return 0


def _unschedule(options: argparse.Namespace) -> int:
    _server(options).unschedule(options.name)
    print(f"{options.name}: removed")
    return 0


def _status(options: argparse.Namespace) -> int:
    server = _server(options)
    schedules, runs = server.schedules(), server.runs(options.experiment)
    for each in schedules:
        cron = each.trigger.cron_schedule.cron if each.trigger and each.trigger.cron_schedule else "at intervals"
        print(f"schedule  {each.display_name}  {'runs' if each.mode == 'ENABLE' else 'paused'}  {cron}")
    for each in runs:
        print(f"run  {each.display_name}  {each.state or 'PENDING'}  {each.created_at:%Y-%m-%d %H:%M}  {each.run_id}")
    if not schedules and not runs:
        print(f"no schedule, and no run in experiment {options.experiment}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from components import IMAGE
    from pipelines import check, resources

    file = resources.in_use()
    profile = resources.Profile(options.profile, IMAGE, file)
    pod = not options.no_pod
    if pod and "DREAMTEACHER_IMAGE" not in os.environ:
        raise UserError("set DREAMTEACHER_IMAGE to the image that the trial pod runs, or skip the pod with --no-pod")
    print(f"{options.profile} of {file}")
    return check.examine(
        profile,
        namespace=options.namespace or os.environ.get("KFP_NAMESPACE") or check.KFP_NAMESPACE,
        kfp_namespace=options.kfp_namespace,
        context=options.context,
        account=options.service_account,
        host=options.host or os.environ.get("KF_PIPELINES_ENDPOINT"),
        wait=options.wait if pod else None,
    )


def _server(options: argparse.Namespace) -> Kubeflow:
    options.host = options.host or os.environ.get("KF_PIPELINES_ENDPOINT")
    if not options.host:
        raise UserError(
            "set --host or KF_PIPELINES_ENDPOINT to the KFP API, such as http://localhost:8080 with a port-forward to ml-pipeline-ui"
        )
    from pipelines.client import Kubeflow  # kfp takes two seconds to import

    namespace = options.namespace or os.environ.get("KFP_NAMESPACE")
    return Kubeflow(options.host.rstrip("/"), namespace, os.environ.get("KFP_EXISTING_TOKEN"))


def _warn(options: argparse.Namespace) -> None:
    from pipelines import check

    namespace = options.namespace or os.environ.get("KFP_NAMESPACE") or check.KFP_NAMESPACE
    check.warn(options.package, namespace=namespace, account=options.service_account)


def _upload(server: Kubeflow, options: argparse.Namespace) -> Version:
    return server.upload(options.package, options.version or commit_name())


def commit_name() -> str:
    """The version's name: the commit, which must contain all files in use."""
    commit = output_of("git", "rev-parse", "--short=12", "HEAD")
    if not commit:
        raise UserError("a version is named after its git commit, but this folder is in no git repository; name the version with --version")
    if output_of("git", "status", "--porcelain", "--untracked-files=no"):
        raise UserError(
            f"files differ from commit {commit}, after which the version would be named; commit them, or name the version with --version"
        )
    return f"git-{commit}"


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """`--arg NAME=VALUE` as values: VALUE is YAML, or plain text if the parameter is a string. Checked before the upload."""
    from pipelines.client import read_package

    inputs = read_package(options.package)["root"].get("inputDefinitions", {}).get("parameters", {})
    values: dict[str, Any] = {}
    for each in options.arg:
        name, sep, text = each.partition("=")
        if not sep or name not in inputs:
            raise UserError(f"--arg {each}: write it as NAME=VALUE; parameters of {options.package} are {', '.join(inputs) or 'none'}")
        try:
            values[name] = text if inputs[name]["parameterType"] == "STRING" else yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--arg {each}: {text!r} is not a YAML value") from None
    for name, kind in inputs.items():
        if name not in values and kind.get("defaultValue", "") == "" and (name == "git_url" or not kind.get("isOptional")):
            raise UserError(f"{options.package} needs --arg {name}=VALUE")
    return values


def _check_incoming(package: Path, arguments: dict[str, Any]) -> None:
    """Raises UserError if a scheduled retraining would never find new pictures."""
    from pipelines.client import read_package

    settings = arguments.get("settings") or []
    if read_package(package)["pipelineInfo"]["name"] == "dreamteacher-retrain" and not any(
        str(setting).startswith("retrain.incoming=") for setting in settings
    ):
        raise UserError(
            "a scheduled retraining needs retrain.incoming in its settings, even if params.yaml sets it: "
            """--arg 'settings=["retrain.incoming=s3://bucket/incoming"]'"""
        )
