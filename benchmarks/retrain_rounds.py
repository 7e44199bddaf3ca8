"""Retraining in rounds on the sample, by the retrain pipeline on this machine: what each round says, and who is champion after it.

    python benchmarks/retrain_rounds.py [--work FOLDER] [--out FILE] [--seeds 0 1 2] [--set KEY=VALUE ...]

200 pictures of samples/nuclei are the project; then 150 arrive, then none, then 100 of which 30 % are broken, and at last, mended, with
one step of fine-tuning, which makes a worse model. Takes the settings of benchmarks/paper/sets/nuclei.yaml, a registry of its own below
--work, and about three times as long as their chain; a trial:

    python benchmarks/retrain_rounds.py --seeds 0 --set teacher.steps=20 --set distill.steps=20 --set finetune.steps=60
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamteacher.report.summary import markdown

SAMPLE = Path("samples/nuclei")
FIRST, SECOND, THIRD = 200, 150, 100  # train pictures of the project, and of the two arrivals
BROKEN = 0.3
ENDS = (
    (r"promoted = true, version \d+: (.*)", "promoted"),
    (r"promoted = false, version \d+: (.*)", "refused"),
    (r"nothing new: ([^'\n]*)", "skipped"),  # KFP's runner prints it in quotes
    (r"UserError: (.*)", "failed"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("artifacts/retrain_rounds"), help="must be empty or missing (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/retrain_rounds.json"), help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"], help="default: 0 1 2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; may be given again")
    options = parser.parse_args()
    work = options.work.absolute()
    if work.exists() and any(work.iterdir()):
        parser.error(f"{work} is not empty; name another --work")
    rows = []
    for name, settings in arrivals(work):
        rows.append(run_round(name, work, options.seeds, [*options.set, *settings]))
        print(f"{name}: {rows[-1]['end']}: {rows[-1]['reason']}", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"settings": options.set, "seeds": options.seeds, "rounds": rows}, indent=1) + "\n")
    columns = ("round", "end", "champion", "previous", "challenger", "minutes")
    print(markdown([list(columns), *([str(row[column]) for column in columns] for row in rows)]))


def arrivals(work: Path) -> Iterator[tuple[str, list[str]]]:
    """Each round's name and its own settings, once its pictures lie where they arrive."""
    train = sorted((SAMPLE / "images/train").iterdir())
    project, incoming = work / "project", work / "incoming"
    incoming.mkdir(parents=True)
    for kind in ("images", "masks"):
        shutil.copytree(SAMPLE / kind / "val", project / "pictures" / kind / "val")
        (project / "pictures" / kind / "train").mkdir()
    shutil.copy(SAMPLE / "classes.txt", project / "pictures")
    shutil.copy("benchmarks/paper/sets/nuclei.yaml", project / "params.yaml")
    for picture in train[:FIRST]:
        shutil.copy(picture, project / "pictures/images/train")
        for mask in (SAMPLE / "masks/train").glob(f"{picture.stem}.*"):
            shutil.copy(mask, project / "pictures/masks/train")
    yield f"{FIRST} pictures", []
    for picture in train[FIRST : FIRST + SECOND]:
        shutil.copy(picture, incoming)
    yield f"+{SECOND}", []
    yield "+0", []
    last = train[FIRST + SECOND : FIRST + SECOND + THIRD]
    for i, picture in enumerate(last):
        content = picture.read_bytes()
        (incoming / picture.name).write_bytes(content[: len(content) // 3] if i < BROKEN * len(last) else content)
    yield f"+{THIRD}, {BROKEN:.0%} broken", []
    for picture in last:
        shutil.copy(picture, incoming)
    yield "a worse model", ["finetune.steps=1", "finetune.warmup_steps=0"]


def run_round(name: str, work: Path, seeds: list[str], settings: list[str]) -> dict[str, Any]:
    """One run of the pipeline; what its last step said, and the registry's aliases after it."""
    given = ["ingest.source=pictures", f"retrain.incoming={work / 'incoming'}", f"compare.seeds=[{','.join(seeds)}]", *settings]
    words = [word for setting in given for word in ("--set", setting)]
    command = [sys.executable, "-m", "pipelines", "run-local", "--pipeline", "retrain", "--project", str(work / "project")]
    uri = f"sqlite:///{work}/mlflow.db"
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--root", str(work / "runs"), *words],
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    (work / f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}.log").write_text(done.stdout)
    found = ((end, re.findall(pattern, done.stdout)) for pattern, end in ENDS)
    end, said = next(((end, said) for end, said in found if said), ("unknown", [f"see the log in {work}"]))
    return {"round": name, "end": end, "reason": said[-1], "minutes": round((time.monotonic() - started) / 60, 1)} | aliases(uri)


def aliases(uri: str) -> dict[str, str]:
    """The version that bears each alias, or -."""
    from mlflow.tracking import MlflowClient

    models = MlflowClient(uri).search_registered_models()
    known = models[0].aliases if models else {}
    return {alias: str(known.get(alias, "-")) for alias in ("champion", "previous", "challenger")}


if __name__ == "__main__":
    main()
