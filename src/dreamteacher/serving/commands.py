"""`dreamteacher fetch-model|deploy|follow|status|last-run`: serve a registered model on a cluster, and monitor its retraining."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path


def add_commands(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    """Add the commands to those of `dreamteacher`; `add` takes name, function and help."""
    fetch = add("fetch-model", _fetch_model, "download the Triton repository of a registered model, as the serving pods do")
    fetch.add_argument("name", help="registered model, or several that one Triton serves, separated by commas")
    fetch.add_argument(
        "--version", metavar="N", help="version; for several models NAME=N, separated by commas (default: the version with --alias)"
    )
    fetch.add_argument("--alias", default="champion", help="alias of the version (default: %(default)s)")
    fetch.add_argument(
        "--backend",
        choices=("production", "local"),
        default="production",
        help="production: onnxruntime backend; local: for a Triton with only the python backend (default: %(default)s)",
    )
    fetch.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="model repository to write; its previous content is deleted"
    )
    deploy = add("deploy", _deploy, "roll out a version on Kubernetes")
    deploy.add_argument("--version", metavar="N", help="version to deploy and pin (default: the version with the deployment's alias)")
    deploy.add_argument("--model", metavar="NAME", help="one of the deployment's models (default: all)")
    deploy.add_argument("--deployment", default="dreamteacher-triton", metavar="NAME", help="Deployment of Triton (default: %(default)s)")
    deploy.add_argument("--follow", action="store_true", help="leave a version pinned with --version as it is, like the CronJob")
    deploy.add_argument("--wait", action="store_true", help="wait until all replicas serve the version, or fail if one cannot")
    follow = add("follow", _follow, "receive MLflow's webhooks and deploy a version when its alias moves")
    follow.add_argument("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    status = add("status", _status, "list the served versions on Kubernetes")
    for command in (deploy, follow, status):
        command.add_argument("--namespace", "-n", help="namespace (default: that of the pod, else of kubectl's context)")
    last = add("last-run", _last_run, "print when MLflow last recorded a run, such as a scheduled retraining")
    last.add_argument("--within-days", type=float, metavar="DAYS", help="exit with code 2 if the last run is older")
    last.add_argument(
        "--experiment",
        default=os.environ.get("MLFLOW_EXPERIMENT_NAME", "dreamteacher"),
        metavar="NAME",
        help="MLflow experiment (default: %(default)s)",
    )


def _fetch_model(options: argparse.Namespace) -> int:
    from dreamteacher.errors import UserError
    from dreamteacher.outages import patient
    from dreamteacher.serving.delivery import fetch_repositories, resolve
    from dreamteacher.serving.deployment import split, versions_by_model

    names = split(options.name)
    if len(names) > 1 and any("=" not in part for part in split(options.version or "=")):
        raise UserError(f"--version {options.version} names no model, and there are {', '.join(names)}; write NAME=N, separated by commas")
    numbers = versions_by_model(names, options.version)
    versions = {name: number or patient(resolve)(name, alias=options.alias) for name, number in numbers.items()}
    models = fetch_repositories(versions, options.out, backend=options.backend)
    print(f"{', '.join(f'version {versions[name]} of {name}' for name in versions)}: {', '.join(models)} -> {options.out}")
    return 0


def _deploy(options: argparse.Namespace) -> int:
    from dreamteacher.serving.deployment import deploy

    choices = {"version": options.version, "model": options.model, "follow": options.follow, "wait": options.wait}
    print(deploy(options.deployment, options.namespace, **choices))
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
