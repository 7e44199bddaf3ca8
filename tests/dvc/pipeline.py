"""A copy of the project's pipeline, run by a real DVC. Only the stage bodies are replaced: by ones that take no time."""

import os
import subprocess
from pathlib import Path

from dreamteacher.stages import fetch_data
from dreamteacher.stages.find_commit import Resolved, resolve

STAND_IN = """#!{python}
import json, sys, types
from pathlib import Path
from dreamteacher import cli
from dreamteacher.stage import digest_of, open_stage

READS = {{"ingest": ["ingest"], "train-teacher": ["seed", "teacher"], "distill-features": ["seed", "taps", "student", "distill"],
    "train-interpreter": ["few_labels", "taps", "interpreter"], "distill-labels": ["taps", "student", "distill", "labels"],
    "finetune": ["few_labels", "student", "finetune"], "evaluate": ["few_labels", "compare", "evaluate"], "export-onnx": ["export"],
    "publish": ["publish"], "report": ["compare"]}}
name = sys.argv[1]

def run(params, *, out, overwrite, metrics=None, plots=None, **given):
    given.pop("artifacts", None)
    inputs = {{key: value for key, value in given.items() if isinstance(value, Path)}}
    with open("ran.log", "a") as log:
        print(" ".join(sys.argv[1:]), file=log)
    with open_stage(name, params={{**params.section(*READS[name]), **{{k: v for k, v in given.items() if k not in inputs}}}},
                    inputs=inputs, out=out, overwrite=overwrite) as stage:
        (stage.tmp / "model.safetensors").write_text(name + str(given.get("seed")))
        if name == "distill-features":
            (stage.tmp / "taught_by.json").write_text(digest_of(inputs["teacher"]))
        if plots:
            files = {{"finetune_loss.csv": "step,scratch,features,mix\\n1,3,2,1\\n", "teacher_loss/own.csv": "step,loss\\n1,2\\n",
                      "distill_quality/features.csv": "step,explained_variance\\n1,0.5\\n",
                      "results.png": "", "overlays/0.png": "",
                      "metrics.json": json.dumps({{"mix": {{"miou_mean": params.finetune.lr}}}})}}
            for file, text in files.items():
                (stage.tmp / file).parent.mkdir(exist_ok=True)
                (stage.tmp / file).write_text(text)
    if plots:  # as the stage itself does
        for file in files:
            place = metrics if file == "metrics.json" else plots / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((out / file).read_bytes())
    return {{}}

cli.import_module = lambda module: types.SimpleNamespace(run=run)
sys.exit(cli.main())
"""


class Project:
    """A git and DVC project in `folder` with one seed of the demo's comparison."""

    def __init__(self, folder: Path, tools: Path):
        self.folder = folder
        self.environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def change(self, old: str, new: str) -> None:
        """Edit params.yaml."""
        text = (self.folder / "params.yaml").read_text()
        assert text.count(old) == 1, old
        (self.folder / "params.yaml").write_text(text.replace(old, new))

    def repro(self) -> list[str]:
        """`dvc repro`; the commands it ran."""
        log = self.folder / "ran.log"
        log.unlink(missing_ok=True)
        self.run("dvc", "repro")
        return sorted(log.read_text().splitlines()) if log.exists() else []


def url(origin: Project) -> str:
    return (origin.folder.parent / "bare.git").as_uri()


def head(origin: Project) -> str:
    return origin.run("git", "rev-parse", "HEAD").strip()


def find(address: str, rev: str, *overrides: str) -> Resolved:
    return resolve(git_url=address, data_rev=rev, overrides=list(overrides), pipeline="pretrain")


def fetch(origin: Project, rev: str, out: Path, *overrides: str) -> tuple[Resolved, dict[str, str]]:
    """As the pipeline does."""
    found = find(url(origin), rev, *overrides)
    return found, fetch_data.run(git_url=url(origin), data_version=found.data_version, source=found.source, out=out)
