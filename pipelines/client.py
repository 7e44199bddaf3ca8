"""The KFP API: upload, run, schedule, pause. Wraps kfp.Client with names, idempotence and clear errors."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import kfp
import yaml
from kfp_server_api import ApiException, V2beta1Experiment, V2beta1Pipeline, V2beta1RecurringRun, V2beta1Run
from urllib3.exceptions import HTTPError

from dreamteacher.errors import UserError
from dreamteacher.mlflow_server import without_password

CRON_FIELDS = (
    ("second", 0, 59, ""),
    ("minute", 0, 59, ""),
    ("hour", 0, 23, ""),
    ("day of month", 1, 31, ""),
    ("month", 1, 12, "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"),
    ("day of week", 0, 6, "SUN MON TUE WED THU FRI SAT"),
)
PAGE = 100
NEWEST = 10  # runs that `runs` returns


@dataclass(frozen=True)
class Version:
    """An uploaded version of a pipeline."""

    pipeline: str  # display name
    name: str
    pipeline_id: str
    version_id: str


class _Client(kfp.Client):
    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        """Without retries: kfp's own tries five times in 25 seconds and prints a traceback for each."""
        return self.healthzs.healthz_service_get_healthz()


class Kubeflow:
    """One KFP API server, for one team's `namespace` (None for a single-user KFP).

    Every method raises a one-line UserError if the server cannot be reached or refuses.
    """

    def __init__(self, host: str, namespace: str | None = None, token: str | None = None):
        self.host, self._token = without_password(host), token  # without, for messages
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # do not log the three retries
        with warnings.catch_warnings(), self._errors("connect"):
            warnings.simplefilter("ignore", FutureWarning)  # "only works with Kubeflow Pipeline v2.0.0-beta.2 and later"
            self._kfp = _Client(host, namespace=namespace, existing_token=token)

    def upload(self, package: Path, version: str) -> Version:
        """Upload a compiled package as `version` of the pipeline that it names; creates the pipeline if it does not exist.

        Uploading the same package again has no effect. Another package under the same version name is refused, since versions are
        immutable.
        """
        name = read_package(package)["pipelineInfo"]["name"]
        digest = f"sha256:{hashlib.sha256(package.read_bytes()).hexdigest()}"
        with self._errors(f"upload {name} {version}"):
            pipeline = self._pipeline(name) or self._create_pipeline(name)
            known = self._kfp.list_pipeline_versions(pipeline, page_size=PAGE, filter=_is("display_name", version)).pipeline_versions
            if not known:
                made = self._kfp.upload_pipeline_version(str(package), version, pipeline_id=pipeline, description=digest)
            elif known[0].description == digest:
                made = known[0]
            else:
                raise UserError(
                    f"version {version} of {name} on {self.host} is another package (other image, profile or code); "
                    "commit what changed, or name the version with --version"
                )
        return Version(name, version, pipeline, made.pipeline_version_id)

    def run(self, version: Version, *, name: str, experiment: str, arguments: dict[str, Any], service_account: str | None = None) -> str:
        """Start a run; returns its id."""
        with self._errors(f"run {version.pipeline}"):
            run: V2beta1Run = self._kfp.run_pipeline(
                self._experiment(experiment),
                name,
                params=arguments,
                pipeline_id=version.pipeline_id,
                version_id=version.version_id,
                service_account=service_account,
            )
        return str(run.run_id)

    def page_of(self, run: str) -> str | None:
        """URL of the page of a run; None if `host` is the API without the user interface (which proxies API requests)."""
        with suppress(OSError):
            try:
                request = urllib.request.Request(f"{self.host}/", headers={"Authorization": f"Bearer {self._token}"} if self._token else {})
                urllib.request.urlopen(request, timeout=10).close()
            except urllib.error.HTTPError as error:
                if error.code == 404:  # any other may be a login before the page
                    return None
        return f"{self.host}/#/runs/details/{run}"

    def schedule(
        self, version: Version, *, name: str, cron: str, experiment: str, arguments: dict[str, Any], service_account: str | None = None
    ) -> str:
        """Schedule `version` by `cron` (six fields, seconds first), one run at a time; returns the schedule's id.

        A schedule of this name is replaced. Missed runs are not caught up. The new schedule is created before the old ones are deleted, so
        a failure in between leaves an extra schedule, which the next call removes, and never none.
        """
        check_cron(cron)
        with self._errors(f"schedule {name}"):
            old = self._schedules(name)
            new: V2beta1RecurringRun = self._kfp.create_recurring_run(
                self._experiment(experiment),
                name,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                params=arguments,
                pipeline_id=version.pipeline_id,
                version_id=version.version_id,
                service_account=service_account,
            )
            for each in old:
                self._kfp.delete_recurring_run(each.recurring_run_id)
        return str(new.recurring_run_id)

    def pause(self, name: str) -> None:
        """Pause a schedule until it is scheduled again; a running run continues."""
        with self._errors(f"pause {name}"):
            for each in self._existing(name):
                self._kfp.disable_recurring_run(each.recurring_run_id)

    def unschedule(self, name: str) -> None:
        """Delete a schedule; the runs that it started are kept."""
        with self._errors(f"unschedule {name}"):
            for each in self._existing(name):
                self._kfp.delete_recurring_run(each.recurring_run_id)

    def schedules(self) -> list[V2beta1RecurringRun]:
        """All schedules."""
        with self._errors("list the schedules"):
            return self._schedules(None)

    def runs(self, experiment: str) -> list[V2beta1Run]:
        """The newest runs of an experiment, newest first; empty if the experiment does not exist."""
        with self._errors("list the runs"):
            found = self._kfp.list_experiments(filter=_is("display_name", experiment)).experiments
            if not found:
                return []
            return self._kfp.list_runs(page_size=NEWEST, sort_by="created_at desc", experiment_id=found[0].experiment_id).runs or []

    def _pipeline(self, name: str) -> str | None:
        namespace = self._kfp.get_user_namespace() or None
        found = self._kfp.list_pipelines(namespace=namespace, filter=_is("display_name", name)).pipelines
        return found[0].pipeline_id if found else None

    def _create_pipeline(self, name: str) -> str:
        """Create an empty pipeline. kfp's upload_pipeline would also create a version with the pipeline's name instead of the commit's."""
        empty = V2beta1Pipeline(display_name=name, name=name, namespace=self._kfp.get_user_namespace() or None)
        return str(self._kfp.pipelines.pipeline_service_create_pipeline(empty).pipeline_id)

    def _experiment(self, name: str) -> str:
        made: V2beta1Experiment = self._kfp.create_experiment(name)
        return str(made.experiment_id)

    def _existing(self, name: str) -> list[V2beta1RecurringRun]:
        found = self._schedules(name)
        if not found:
            names = sorted({each.display_name for each in self._schedules(None)})
            raise UserError(f"{self.host} has no schedule {name!r}; there is {', '.join(names) or 'none'}")
        return found

    def _schedules(self, name: str | None) -> list[V2beta1RecurringRun]:
        """All schedules with this name (None: all), over all pages; KFP allows several schedules with the same name."""
        found: list[V2beta1RecurringRun] = []
        token: str | None = ""
        while token is not None:
            page = self._kfp.list_recurring_runs(
                page_token=token,
                page_size=PAGE,
                namespace=self._kfp.get_user_namespace() or None,
                filter=_is("display_name", name) if name else None,
            )
            found += page.recurring_runs or []
            token = page.next_page_token or None
        return found

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Turn errors of server and network into a one-line UserError, and suppress kfp's printed links."""
        try:
            with redirect_stdout(StringIO()):
                yield
        except ApiException as error:
            raise UserError(f"cannot {action}: {self.host} answers {error.status} {_message(error)}{_remedy(error.status)}") from error
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            why = re.sub(r"^<[^>]*>: |^\w+\([^)]*\): ", "", str(reason))
            raise UserError(
                f"cannot {action}: {self.host} cannot be reached ({why}); check that it runs and that the port is forwarded"
            ) from error


def read_package(package: Path) -> dict[str, Any]:
    """The PipelineSpec of a compiled package, the first of its YAML documents.

    Raises:
        UserError: there is no such file, or it is not a compiled pipeline.
    """
    try:
        with package.open() as file:
            spec: Any = next(iter(yaml.safe_load_all(file)), None)
    except OSError as error:
        raise UserError(f"cannot read {package}: {error.strerror}; name a file that `python -m pipelines compile` wrote") from error
    except (yaml.YAMLError, UnicodeDecodeError):
        spec = None
    if not isinstance(spec, dict) or "pipelineInfo" not in spec:
        raise UserError(f"{package} is not a compiled pipeline; name a file that `python -m pipelines compile` wrote")
    return spec


def check_cron(cron: str) -> None:
    """Check a cron expression as KFP (robfig/cron) reads it: six fields, seconds first, each `*`, `?`, values, ranges and steps.

    Raises:
        UserError: names what is wrong and what is valid.
    """
    fields = cron.split()
    if len(fields) != len(CRON_FIELDS):
        hint = f"; did you mean '0 {' '.join(fields)}'?" if len(fields) == 5 else ", such as '0 0 2 * * MON': Mondays at 2"
        raise UserError(f"cron {cron!r} has {len(fields)} fields; KFP needs six, seconds first{hint}")
    for text, (field, low, high, names) in zip(fields, CRON_FIELDS, strict=True):
        for part in text.split(","):
            if not _is_cron_part(part, low, high, names.split()):
                known = f", or {names.split()[0]} to {names.split()[-1]}" if names else ""
                raise UserError(f"cron {cron!r}: {part!r} is not a valid {field}; use * or {low} to {high}{known}, such as 1-5, */2 or 1,3")


def _is_cron_part(part: str, low: int, high: int, names: list[str]) -> bool:
    match = re.fullmatch(r"(?:[*?]|(\w+)(?:-(\w+))?)(?:/(\d+))?", part)
    if not match:
        return False
    values = [names.index(text.upper()) + low if text.upper() in names else text for text in match.groups()[:2] if text]
    numbers = [int(value) for value in values if str(value).isdecimal()]
    step = match.group(3)
    return len(numbers) == len(values) and all(low <= n <= high for n in numbers) and numbers == sorted(numbers) and step != "0"


def _is(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def _message(error: ApiException) -> str:
    """The server's message as one line of at most 300 characters; of KFP's chained errors the last, the cause."""
    try:
        body = json.loads(error.body or "")
        text = body.get("message") or body.get("error_message") or body.get("error")
    except (ValueError, AttributeError):
        text = None
    return " ".join(str(text or error.reason).split())[:300]


def _remedy(status: int) -> str:
    return {
        401: "; give a token in KFP_EXISTING_TOKEN",
        403: "; ask for the role, or name your --namespace",
        404: "; is --host the API of Kubeflow Pipelines (version 2)?",
    }.get(status, "")
