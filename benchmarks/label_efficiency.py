"""What the pretraining is worth with fewer and more labels and a shorter and a longer budget, beside a random teacher.

    python benchmarks/label_efficiency.py [--labels 5 20 50] [--steps 300 900 2700] [--inits scratch features mix random-teacher]
        [--seeds 0 1 2] [--dry-run]

Runs on the artifacts of a finished chain (`dvc repro`). For every number of labels, budget of fine-tuning steps, initialisation and
seed it runs the chain's own stages into --work, or takes what the chain has made with the same settings, and measures mIoU (top-1) on
the validation split. Start it again after an interruption, or with more options: what is done is not done again.

`random-teacher` is the control: features distilled, by the same recipe, from a generator that was never trained.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dreamteacher.data.dataset import ImageSet
from dreamteacher.errors import UserError
from dreamteacher.report.summary import markdown
from dreamteacher.settings.file import load_params
from dreamteacher.settings.schema import Params
from dreamteacher.stage import RECORD, digest_of
from dreamteacher.stages import distill_features, distill_labels, finetune, train_interpreter, train_teacher
from dreamteacher.tasks.model import load_task_model
from dreamteacher.tasks.scoring import score
from dreamteacher.training.processes import this_process

INITS = ("scratch", "features", "mix", "random-teacher")


@dataclass
class Job:
    """A stage to run, after those before it."""

    name: str
    out: Path
    run: Callable[..., dict[str, float]]


@dataclass
class Plan:
    """All jobs in an order in which they can run, and the model of each (labels, steps, init, seed)."""

    jobs: dict[Path, Job] = field(default_factory=dict)
    models: dict[tuple[int, int, str, int], Path] = field(default_factory=dict)

    def add(self, name: str, out: Path, stage: Callable[..., dict[str, float]], **inputs: Any) -> Path:
        self.jobs.setdefault(out, Job(name, out, partial(stage, out=out, **inputs)))
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[5, 20, 50], help="labelled pictures (default: 5 20 50)")
    parser.add_argument("--steps", type=int, nargs="+", help="budgets of fine-tuning (default: a third of finetune.steps, 1 and 3 times)")
    parser.add_argument("--inits", nargs="+", choices=INITS, default=list(INITS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: %(default)s")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="one setting; may be given again")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="of the finished chain (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("artifacts/label_efficiency"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/label_efficiency.json"), help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="only list what would run")
    options = parser.parse_args()
    try:
        params = load_params(options.params, options.set)
        whole = params.finetune.steps
        plan = make_plan(params, options, options.steps or [max(1, whole // 3), whole, 3 * whole])
        if options.dry_run:
            for job in plan.jobs.values():
                print(f"{'done' if (job.out / RECORD).exists() else 'run '}  {job.name:60s} -> {job.out}")
            return
        run(plan)
        rows = measure(plan, options.artifacts / "data", params.evaluate.batch_size, options.work / "scores.json")
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    write_json({"settings": params.model_dump(mode="json"), "models": rows}, options.out)
    print(table(rows))


def make_plan(params: Params, options: argparse.Namespace, budgets: list[int]) -> Plan:
    """The stages that the options ask for."""
    plan, work, artifacts = Plan(), options.work, options.artifacts
    finetune_of_chain = load_params(options.params).finetune  # without what --set changes
    data, teacher, features = artifacts / "data", artifacts / "teachers" / "own", artifacts / "backbones" / "features"
    for labels in options.labels:
        for seed in options.seeds:
            few = params.model_copy(update={"few_labels": labels})
            of_chain = labels == params.few_labels
            for init in options.inits:
                start: Path | None = None
                if init == "features":
                    start = features
                elif init == "random-teacher":
                    start = _random_teacher(plan, params, data, work)
                elif init == "mix":
                    place = _place(of_chain, artifacts / "interpreters" / "mix" / str(seed), work / "interpreters" / f"{labels}-{seed}")
                    given = {"data": data, "teacher": teacher, "seed": seed}
                    interpreter = plan.add(f"interpreter, {labels} labels, seed {seed}", place, train_interpreter.run, params=few, **given)
                    place = _place(of_chain, artifacts / "backbones" / "mix" / str(seed), work / "mix" / f"{labels}-{seed}")
                    given |= {"features": features, "interpreter": interpreter}
                    start = plan.add(f"mix, {labels} labels, seed {seed}", place, distill_labels.run, params=few, **given)
                for steps in budgets:
                    changed = few.model_copy(update={"finetune": few.finetune.model_copy(update={"steps": steps})})
                    same = of_chain and changed.finetune == finetune_of_chain
                    own = work / "finetuned" / f"{labels}-{steps}-{init}-{seed}"
                    plan.models[labels, steps, init, seed] = plan.add(
                        f"finetune {init}, {labels} labels, {steps} steps, seed {seed}",
                        _place(same, artifacts / "finetuned" / init / str(seed), own),
                        finetune.run,
                        params=changed,
                        data=data,
                        init="features" if init == "random-teacher" else init,
                        seed=seed,
                        backbone=start,
                    )
    return plan


def _place(of_chain: bool, chain: Path, own: Path) -> Path:
    """Where the chain has it already, if its settings are the chain's."""
    return chain if of_chain and (chain / RECORD).exists() else own


def _random_teacher(plan: Plan, params: Params, data: Path, work: Path) -> Path:
    """Features of a generator with random weights: one step that is too small to change them, after which all is measured as usual."""
    still = params.teacher.model_copy(update={"pretrained": None, "steps": 1, "lr": 1e-12, "weight_decay": 0.0, "ema": None, "samples": 0})
    untrained = params.model_copy(update={"teacher": still})
    teacher = plan.add("random teacher", work / "random-teacher" / "teacher", train_teacher.run, params=untrained, data=data)
    out = work / "random-teacher" / "features"
    return plan.add("features of the random teacher", out, distill_features.run, params=params, data=data, teacher=teacher)


def run(plan: Plan) -> None:
    """All jobs; those that are done return at once."""
    for number, job in enumerate(plan.jobs.values(), start=1):
        started = time.monotonic()
        job.run()
        print(f"[{number}/{len(plan.jobs)}] {job.name}: {time.monotonic() - started:.0f} s", flush=True)


def measure(plan: Plan, data: Path, batch_size: int, cache: Path) -> list[dict[str, Any]]:
    """A row for each model; `cache` keeps the figures of every model that was ever measured, by its digest."""
    known: dict[str, dict[str, float]] = json.loads(cache.read_text()) if cache.exists() else {}
    val, rows = ImageSet(data, "val"), []
    for (labels, steps, init, seed), folder in plan.models.items():
        digest = digest_of(folder)
        if digest not in known:
            known[digest], _ = score(load_task_model(folder), val, batch_size, this_process().device)
            write_json(known, cache)
        rows.append({"labels": labels, "steps": steps, "init": init, "seed": seed, **known[digest]})
    return rows


def write_json(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and sample standard deviation over the seeds, a line for each number of labels and budget, a column for each init."""
    figure = "miou" if "miou" in rows[0] else "top1"
    inits = list(dict.fromkeys(row["init"] for row in rows))
    lines = [["labels", "steps", *inits]]
    for labels, steps in dict.fromkeys((row["labels"], row["steps"]) for row in rows):
        cells = []
        for init in inits:
            values = [100 * row[figure] for row in rows if (row["labels"], row["steps"], row["init"]) == (labels, steps, init)]
            cells.append(f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else ""))
        lines.append([str(labels), str(steps), *cells])
    return f"{'mIoU' if figure == 'miou' else 'top-1'} in per cent, mean ± standard deviation over seeds\n\n{markdown(lines)}"


if __name__ == "__main__":
    main()
