"""The paper's tables on your own pictures: recipes side by side over paired draws of labels.

    python -m benchmarks.paper tab09-objectives

Each table is a settings file in benchmarks/paper/tables: its groups take the place of those in params.yaml. The chain itself runs it, by
`dreamteacher repro` in a project below --work, so it may be stopped at any time and goes on, and a recipe that two tables share runs once.
The result goes to benchmarks/results/TABLE.json, with settings, machine and versions, and is printed as Markdown.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from benchmarks.paper.comparison import markdown
from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params, save_overrides
from dreamteacher.tracking import git

TABLES = Path(__file__).parent / "tables"
SEEDS = range(10)  # paired draws of labels, each with its own random weights
CONFIG = "[core]\n    no_scm = true\n    analytics = false\n    autostage = false\n    check_update = false\n[cache]\n    dir = {cache}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=sorted(path.stem for path in TABLES.glob("*.yaml")))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="default: 0 to 9")
    parser.add_argument("--project", type=Path, default=Path(), help="folder with dvc.yaml and params.yaml (default: here)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; may be given again")
    parser.add_argument("--work", type=Path, default=Path("artifacts/paper"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="default: %(default)s")
    parser.add_argument("--jobs", type=int, help="stages at a time; see `dreamteacher repro`")
    options = parser.parse_args()
    try:
        settings = settings_of(options.table, options.project, options.seeds, options.set)
        folder = make_project(options.work / options.table, options.project, settings)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    words = [sys.executable, "-m", "dreamteacher.cli", "repro", *(["--jobs", str(options.jobs)] if options.jobs else [])]
    code = subprocess.run(words, cwd=folder, env=os.environ | {"DREAMTEACHER_TRACKING": "off"}, check=False).returncode
    if code:
        raise SystemExit(code)
    report(options.table, folder, settings, options.out)


def settings_of(table: str, project: Path, seeds: list[int], overrides: list[str]) -> dict[str, Any]:
    """The project's settings with the groups of `table` in place of its own.

    Raises:
        UserError: the project has no params.yaml, or the settings are impossible.
    """
    if not (project / "params.yaml").exists():
        raise UserError(f"{project.absolute()} has no params.yaml; name a project with --project")
    values: dict[str, Any] = yaml.safe_load((project / "params.yaml").read_text())
    groups = yaml.safe_load((TABLES / f"{table}.yaml").read_text())
    groups["compare"]["seeds"] = seeds
    values |= groups
    values["export"] = (values.get("export") or {}) | {"init": groups["compare"]["inits"][0], "seed": seeds[0]}
    source = Path(values.get("ingest", {}).get("source", load_params(None).ingest.source))
    if "://" not in str(source):
        values["ingest"] = values.get("ingest", {}) | {"source": str((project / source).absolute())}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "params.yaml"
        path.write_text(yaml.safe_dump(values))
        save_overrides(path, overrides)
        resolved: dict[str, Any] = yaml.safe_load(path.read_text())
    return resolved


def make_project(folder: Path, project: Path, settings: dict[str, Any]) -> Path:
    """A DVC project in `folder` with the chain of `project` and its cache; what is done there stays."""
    (folder / ".dvc").mkdir(parents=True, exist_ok=True)
    (folder / ".dvc/config").write_text(CONFIG.format(cache=(project / ".dvc/cache").absolute()))
    (folder / "dvc.yaml").write_text((project / "dvc.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder


def report(table: str, folder: Path, settings: dict[str, Any], out: Path) -> None:
    """Write `out`/TABLE.json and print the table."""
    with (folder / "artifacts/evaluation/per_model.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = next(name for name in rows[0] if name not in ("init", "seed"))
    pretraining = {
        name: json.loads((folder / "artifacts/backbones" / name / "stage.json").read_text())["metrics"] for name in settings["recipes"]
    }
    result = {
        "table": table,
        "figure": figure,
        "rows": rows,
        "pretraining": pretraining,
        "settings": settings,
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "processor": platform.processor()},
        "versions": {name: version(name) for name in ("dreamteacher", "torch", "timm", "diffusers")} | {"commit": git("rev-parse", "HEAD")},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{table}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(rows, figure))


if __name__ == "__main__":
    main()
