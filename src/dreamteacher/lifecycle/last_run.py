"""Age of the newest MLflow run, to monitor whether scheduled retraining still runs.

Every scheduled run is logged to MLflow, also without new data (`fetch-data`, `ingest`, `compare-data`).
"""

from __future__ import annotations

from datetime import UTC, datetime

from dreamteacher.errors import UserError
from dreamteacher.lifecycle.promotion import registry_client
from dreamteacher.outages import patient


@patient
def last_run(experiment: str, within_days: float | None = None) -> str:
    """The newest run of `experiment` and its start time, in words.

    Raises:
        UserError: the experiment does not exist or has no run, MLflow does not answer, or the run began more than `within_days` ago.
    """
    with registry_client() as client:
        found = client.get_experiment_by_name(experiment)
        if not found:
            raise UserError(f"MLflow has no experiment {experiment}; name another with --experiment")
        runs = client.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"], max_results=1)
    if not runs:
        raise UserError(f"experiment {experiment} has no run")
    began = datetime.fromtimestamp(runs[0].info.start_time / 1000, UTC)
    days = (datetime.now(UTC) - began).total_seconds() / 86400
    words = f"the newest run of experiment {experiment}, {runs[0].info.run_name}, began {began:%Y-%m-%d %H:%M} UTC, {days:.1f} days ago"
    if within_days is not None and days > within_days:
        raise UserError(f"{words}, more than {within_days:g}; check the retraining schedule (docs/operations.md)")
    return words
