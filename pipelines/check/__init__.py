"""What a cluster has and lacks for the pipelines, one line each, with the command that fixes it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dreamteacher.errors import UserError
from pipelines.check import kfp, needs, nodes, objects, pod, trainer
from pipelines.check.finding import Cluster, Finding, Look, connect, findings
from pipelines.check.needs import Needs
from pipelines.client import Kubeflow
from pipelines.resources import Profile

KFP_NAMESPACE = "kubeflow"


def examine(
    profile: Profile,
    *,
    namespace: str,
    kfp_namespace: str = KFP_NAMESPACE,
    context: str | None = None,
    account: str | None = None,
    host: str | None = None,
    wait: int | None = None,
) -> int:
    """Print the findings; returns 0 if the pipelines can run there, else 1.

    Args:
        profile: resources of the steps.
        namespace: of the runs.
        kfp_namespace: of KFP itself.
        context: of the kubeconfig (default: the current one).
        account: service account of the runs (default: KFP's).
        host: URL of the KFP API, which is then checked too.
        wait: time limit of the trial pod, seconds; None: no trial pod.

    Raises:
        UserError: there is no cluster, it cannot be reached, or it rejects the credentials.
    """
    client, name = connect(context)
    cluster, wanted = Cluster(client, namespace, kfp_namespace), needs.of_profile(profile)
    account = account or objects.account_of_runs(cluster)
    print(f"context {name}, namespace {namespace}", flush=True)
    states = _print(_of_kfp(cluster, host))
    names = _print(_of_names(cluster, wanted, account))
    states += names + _print(_of_nodes(cluster, wanted, account))
    if wait is not None:
        skipped = [Finding("unread", "trial pod", "skipped, because of what is wrong above")]
        trial = partial(pod.trial, cluster, wanted, account, wait)
        states += _print(skipped if "wrong" in names else findings("trial pod", trial))
    if "wrong" in states:
        print("a run would fail here: see `wrong`")
    elif "unread" in states:
        print("nothing wrong was found, but some objects are `unread`; get permission to read them, or let somebody who has it run this")
    else:
        print("a run can work here" + ("" if wait is not None else "; not tested: image, volume, MLflow and S3, which need the trial pod"))
    return int("wrong" in states)


def warn(package: Path, *, namespace: str, account: str | None) -> None:
    """Print to stderr what would hinder a run of a compiled pipeline, as far as quick checks show; never raises a UserError."""
    try:
        client, name = connect(None)
        cluster, wanted = Cluster(client, namespace, KFP_NAMESPACE), needs.of_package(package)
        found = list(_of_kfp(cluster))
        if not any(each.state == "wrong" for each in found):  # else it is another cluster, or none for runs
            account = account or objects.account_of_runs(cluster)
            found += [*_of_names(cluster, wanted, account), *_of_nodes(cluster, wanted, account)]
    except UserError as error:
        print(f"the cluster was not checked: {error}", file=sys.stderr)
        return
    shown = [each for each in found if each.state in ("wrong", "warn")]
    for each in shown:
        print(f"warning: {each.what}: {each.words}", file=sys.stderr)
    if shown:
        print(f"warning: found in context {name}, namespace {namespace}; `python -m pipelines check` prints how to fix it", file=sys.stderr)


def _print(found: Iterator[Finding] | list[Finding]) -> list[str]:
    """Print the findings; returns their states."""
    states = []
    for each in found:
        print(each.line(), flush=True)
        states.append(each.state)
    return states


def _of_kfp(cluster: Cluster, host: str | None = None) -> Iterator[Finding]:
    looks: dict[str, Look] = {
        "Kubernetes": partial(kfp.kubernetes_version, cluster),
        "Kubeflow Pipelines": partial(kfp.kfp_version, cluster),
        "Argo": partial(kfp.argo_version, cluster),
        kfp.CONFIG: partial(kfp.retry_policy, cluster),
    }
    yield from _each(looks)
    if host:
        try:
            Kubeflow(
                host.rstrip("/"),
                None if cluster.namespace == cluster.kfp_namespace else cluster.namespace,
                os.environ.get("KFP_EXISTING_TOKEN"),
            ).schedules()
            yield Finding("ok", "KFP API", f"{host} answers")
        except UserError as error:
            yield Finding("wrong", "KFP API", str(error))


def _of_names(cluster: Cluster, wanted: Needs, account: str) -> Iterator[Finding]:
    """The objects that a pod refers to; only the namespace if that is wrong."""
    for found in findings("namespace", partial(objects.namespace, cluster)):
        yield found
        if found.state == "wrong":
            return
    looks: dict[str, Look] = {
        "service account": partial(objects.account, cluster, account),
        **{f"config map {name}": partial(objects.config_map, cluster, name, keys) for name, keys in wanted.config_maps.items()},
        **{f"secret {name}": partial(objects.secret, cluster, name, keys) for name, keys in wanted.secrets.items()},
        **{f"image pull secret {name}": partial(objects.pull_secret, cluster, name) for name in wanted.pull_secrets},
        **({f"claim {wanted.claim}": partial(objects.claim, cluster, wanted.claim)} if wanted.claim else {}),
        "quotas": partial(objects.quotas, cluster, wanted),
    }
    yield from _each(looks)


def _of_nodes(cluster: Cluster, wanted: Needs, account: str) -> Iterator[Finding]:
    looks: dict[str, Look] = {"nodes": partial(nodes.pools, cluster, wanted)}
    if wanted.nodes > 1:
        looks |= {
            "Kubeflow Trainer": partial(trainer.trainer, cluster),
            "runtime": partial(trainer.runtime, cluster),
            f"rights of {account}": partial(trainer.rights, cluster, account),
        }
    yield from _each(looks)


def _each(looks: dict[str, Look]) -> Iterator[Finding]:
    for what, look in looks.items():
        yield from findings(what, look)
