"""`dreamteacher fetch-model|deploy|follow|status|last-run`: a registered model on a cluster, and whether it is retrained."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path


def add_commands(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    """Add the commands to those of `dreamteacher`; `add` takes name, function and help."""
    fetch = add("fetch-model", _fetch_model, "get the Triton repository of a registered model, as a pod that serves it does")
    fetch.add_argument("name", help="of the registered model, or of several, divided by commas, which one Triton serves")
    fetch.add_argument(
        "--version", metavar="N", help="of several models NAME=N, divided by commas; default: the one that bears the alias now"
    )
    fetch.add_argument("--alias", default="champion", help="default: %(default)s")
    fetch.add_argument(
        "--backend", choices=("production", "local"), default="production", help="local: for a Triton with the python backend alone"
    )
    fetch.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the model repository; replaced as a whole")
    deploy = add("deploy", _deploy, "serve a version on Kubernetes, by a rollout")
    deploy.add_argument("--version", metavar="N", help="default: the one that bears the deployment's alias now")
    deploy.add_argument("--model", metavar="NAME", help="of a deployment that serves several; default: each")
    deploy.add_argument("--deployment", default="dreamteacher-triton", metavar="NAME", help="default: %(default)s")
    deploy.add_argument("--follow", action="store_true", help="as the CronJob does: a version that was named stays")
    deploy.add_argument("--wait", action="store_true", help="until all replicas serve it, or one cannot")
    follow = add("follow", _follow, "serve what MLflow's webhooks announce, when they do")
    follow.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    status = add("status", _status, "say what is served where on Kubernetes")
    for command in (deploy, follow, status):
        command.add_argument("--namespace", "-n", help="default: that of the pod, or of kubectl's context")
    last = add("last-run", _last_run, "say when something last ran that MLflow knows of, such as a scheduled retraining")
    last.add_argument("--within-days", type=float, metavar="DAYS", help="exit code 2 if it began earlier")
    last.add_argument(
        "--experiment", default=os.environ.get("MLFLOW_EXPERIMENT_NAME", "dreamteacher"), metavar="NAME", help="default: %(default)s"
    )


def _fetch_model(options: argparse.Namespace) -> int:
    from dreamteacher.errors import UserError
    from dreamteacher.outages import patient
    from dreamteacher.serving.delivery import fetch_repositories, resolve
    from dreamteacher.serving.deployment import split, versions_by_model

    names = split(options.name)
    if len(names) > 1 and any("=" not in part for part in split(options.version or "=")):
        raise UserError(f"--version {options.version} does not say of which of {', '.join(names)}; write NAME=N, divided by commas")
    numbers = versions_by_model(names, options.version)
    versions = {name: number or patient(resolve)(name, alias=options.alias) for name, number in numbers.items()}
    models = fetch_repositories(versions, options.out, backend=options.backend)
    print(f"{', '.join(f'version {versions[name]} of {name}' for name in versions)}: {', '.join(models)} -> {options.out}")
    return 0


def _deploy(options: argparse.Namespace) -> int:
    from dreamteacher.serving.deployment import deploy

    given = {"version": options.version, "model": options.model, "follow": options.follow, "wait": options.wait}
    print(deploy(options.deployment, options.namespace, **given))
    return 0


def _follow(options: argparse.Namespace) -> int:
    from dreamteacher.serving.webhook import run

    run(options.namespace, options.port)
    return 0


def _status(options: argparse.Namespace) -> int:
    from dreamteacher.serving.deployment import status

    lines = status(options.namespace)
    print("\n".join(lines))
    return 0


def _last_run(options: argparse.Namespace) -> int:
    from dreamteacher.lifecycle.last_run import last_run

    print(last_run(options.experiment, options.within_days))
    return 0
