"""Get one data version, and the settings that each step depends on."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Dataset, Metrics, Output

from components import IMAGE


# A step is run again when one of its inputs changes, so each group of settings is an output of its own. KFP ships the function's
# source alone, which must therefore hold the names and types of its outputs.
@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch_data(
    project: str,
    git_url: str,
    data_rev: str,
    settings: list,
    seeds: list,
    fresh: list,
    modes: list,
    source: Output[Dataset],
    metrics: Output[Metrics],
    page: Output[HTML],
) -> NamedTuple(
    "Settings",
    [
        ("overrides", list),
        ("seed", int),
        ("few_labels", str),
        ("taps", str),
        ("ingest", dict),
        ("teacher", dict),
        ("student", dict),
        ("distill", dict),
        ("interpreter", dict),
        ("labels", dict),
        ("finetune", dict),
        ("compare", dict),
        ("evaluate", dict),
        ("export", dict),
        ("publish", dict),
        ("retrain", dict),
    ],
):
    """Get the pictures of a data version by git and DVC, and resolve the settings that belong to it.

    Args:
        project: folder of the project, where git_url is empty.
        git_url: repository of the project.
        data_rev: its commit, as find_commit tells it.
        settings: what differs from that revision's params.yaml, as KEY=VALUE.
        seeds: of the comparison.
        fresh: initialisations that start from no pretraining of ours.
        modes: label distillations.
        source: the pictures.
        metrics: how many files there are.
        page: the data version and all settings.
    """
    import json
    from pathlib import Path

    from dreamteacher.files import walk
    from dreamteacher.report.step import write_facts
    from dreamteacher.stages.fetch_data import overrides_of, run

    overrides = overrides_of(settings, seeds=seeds, fresh=fresh, modes=modes)
    params, found = run(project=project, git_url=git_url, data_rev=data_rev, overrides=overrides, out=Path(source.path))
    source.metadata.update(found)
    plain = params.model_dump(mode="json")
    files = sum(1 for _ in walk(source.path))
    metrics.log_metric("files", files)
    write_facts(Path(page.path), "fetch-data", {**found, "files": files, **plain})

    def known(group: dict) -> dict:  # KFP's local runner takes no null; restore_params reads the word
        return {key: "null" if value is None else value for key, value in group.items()}

    text = {name: json.dumps(plain[name]) for name in ("few_labels", "taps")}
    groups = ("ingest", "teacher", "student", "distill", "interpreter", "labels", "finetune")
    groups += ("compare", "evaluate", "export", "publish", "retrain")
    return (overrides, plain["seed"], text["few_labels"], text["taps"], *(known(plain[name]) for name in groups))
