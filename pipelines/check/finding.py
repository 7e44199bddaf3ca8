"""A finding of `check`, and requests to the Kubernetes API."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import urllib3
import yaml

from dreamteacher.errors import UserError, first_line
from dreamteacher.kubernetes_api import or_none

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

TIMEOUT = (5, 20)  # seconds to connect, and to wait for an answer
APPLY = "kubectl apply -k k8s/base -n {}"  # creates all but the secrets


class Finding(NamedTuple):
    """One line: state, subject, text, and the command that fixes it."""

    state: str  # "ok"; "warn": a run may wait or end early; "wrong": it fails; "unread": this user may not read it
    what: str
    words: str
    fix: str = ""

    def line(self) -> str:
        """The printed line."""
        return f"{self.state:7} {self.what}: {self.words}" + (f"; to fix it: {self.fix}" if self.fix else "")


@dataclass(frozen=True)
class Cluster:
    """A cluster as one user of its Kubernetes API sees it."""

    client: ApiClient
    namespace: str  # of the runs
    kfp_namespace: str  # where KFP itself is installed


Look = Callable[[], Iterable[Finding]]


def connect(context: str | None) -> tuple[ApiClient, str]:
    """A client for the kubeconfig's context (the current one for None), or in a pod without a kubeconfig for its own cluster; its name.

    Raises:
        UserError: there is no such cluster, or the kubeconfig cannot be read.
    """
    from kubernetes import client, config

    files = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    settings, name = client.Configuration(), "of this pod"
    if context or any(Path(file).exists() for file in files.split(os.pathsep)):
        try:
            config.load_kube_config(files, context, client_configuration=settings)
            name = context or str(config.list_kube_config_contexts(files)[1]["name"])
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError) as error:
            if context:
                raise UserError(f"--context {context}: {first_line(error)}; `kubectl config get-contexts` lists them") from error
            raise UserError(
                f"kubeconfig {files} cannot be used: {first_line(error)}; `kubectl config view` should show a cluster"
            ) from error
    else:
        try:
            config.load_incluster_config(client_configuration=settings)
        except config.ConfigException as error:
            raise UserError("no cluster to check: there is no kubeconfig; set KUBECONFIG, or run in a pod of the cluster") from error
    settings.retries = 1
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # do not log retries
    if not settings.verify_ssl:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the kubeconfig says so
    return client.ApiClient(settings), name


def read(call: Callable[..., Any], *words: Any, **options: Any) -> Any:
    """The answer of the Kubernetes API; None if the object does not exist.

    Raises:
        UserError: the API cannot be reached, or rejects the credentials.
        ApiException: any other refusal.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return or_none(lambda: call(*words, _request_timeout=TIMEOUT, **options))
    except ApiException as error:
        if error.status == 401:
            raise UserError(f"the Kubernetes API rejects your credentials ({reason(error)}); log in to the cluster again") from error
        raise
    except HTTPError as error:
        host = call.__self__.api_client.configuration.host if hasattr(call, "__self__") else "the Kubernetes API"
        raise UserError(f"{host} cannot be reached ({type(getattr(error, 'reason', None) or error).__name__})") from error


def findings(what: str, look: Look) -> Iterator[Finding]:
    """The findings of `look`; what the API refuses to show is one too, and proves nothing."""
    from kubernetes.client import ApiException

    try:
        yield from look()
    except ApiException as error:
        yield Finding("unread", what, f"cannot be read: {reason(error)}")


def reason(error: Any) -> str:
    """The API's own words for a refusal, in one line."""
    try:
        text = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        text = error.reason
    text = " ".join(str(text).split())
    return f"{error.status} {text.partition(' is forbidden: ')[2] or text}"[:300]
