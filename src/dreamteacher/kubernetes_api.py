"""Calls of the Kubernetes API: a client, retries during outages, refusals in one line."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dreamteacher.errors import UserError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

log = logging.getLogger(__name__)
OUTAGE = 600.0  # maximum outage, seconds


def api_client() -> ApiClient:
    """A client of this pod's cluster, or of kubectl's current context.

    Raises:
        UserError: there is neither, or the client is not installed.
    """
    try:
        from kubernetes import config
        from kubernetes.client import ApiClient
    except ModuleNotFoundError as error:
        raise UserError("the Kubernetes client is not installed; run pip install 'dreamteacher[pipelines]'") from error

    try:
        config.load_kube_config()
    except config.ConfigException as error:
        try:
            config.load_incluster_config()  # config.load_config, which does the same, prints to stdout that "this might not work"
        except config.ConfigException:
            raise UserError(f"no Kubernetes cluster ({error}); run in a pod, or set KUBECONFIG") from error
    return ApiClient()


def patiently(call: Callable[[], Any], poll: float) -> Any:
    """The response (None for 404), with retries during outages, for example while the API's node is replaced; the job continues."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    end = time.monotonic() + OUTAGE
    while True:
        try:
            return or_none(call)
        except (ApiException, HTTPError) as error:
            if (isinstance(error, ApiException) and error.status < 500 and error.status != 429) or time.monotonic() > end:
                return refusals("watch the TrainJob", call)
            log.warning("the Kubernetes API does not answer; next try in %g s", poll)
            time.sleep(poll)


def or_none(call: Callable[[], Any]) -> Any:
    """The response; None for 404."""
    from kubernetes.client import ApiException

    try:
        return call()
    except ApiException as error:
        if error.status == 404:
            return None
        raise


def refusals(action: str, call: Callable[[], Any]) -> Any:
    """The API's response; refusals become one line."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return call()
    except ApiException as error:
        try:
            why = json.loads(error.body)["message"]
        except (TypeError, ValueError, KeyError):
            why = error.reason
        advice = {403: "; the step's service account needs the role of k8s/base", 404: "; is Kubeflow Trainer v2 installed?"}
        if "admission webhook" in str(why) or "exceeded quota" in str(why):  # these are 403 too, although the role allows the request
            advice = {}
        raise UserError(f"cannot {action}: {error.status} {' '.join(str(why).split())[:300]}{advice.get(error.status, '')}") from error
    except HTTPError as error:
        raise UserError(f"cannot {action}: the Kubernetes API cannot be reached ({type(error).__name__})") from error
