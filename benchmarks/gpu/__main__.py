"""Figures of one GPU; benchmarks/gpu.sh runs all parts of it.

    python -m benchmarks.gpu speed [--seconds 240]
    python -m benchmarks.gpu evidence --set cifar10 --data FOLDER [--seconds 150]
    python -m benchmarks.gpu table

`speed` and `evidence` write OUT/speed.json and OUT/evidence.json after each case and pass over what is there of the same device, versions
and commit. `table` writes OUT/README.md from both. `--dry` runs the same code with tiny networks, on a CPU in a minute or two.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import evidence, speed
from benchmarks.gpu.cases import CASES
from benchmarks.gpu.machine import describe
from dreamteacher.report.summary import markdown
from dreamteacher.training.processes import this_process

GOALS = {"mfu": 0.45, "data_wait": 0.02}
EACH = 60  # seconds that a case may take; none is begun with less left


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "evidence", "table"))
    parser.add_argument("--seconds", type=float, default=240, help="default: %(default)s")
    parser.add_argument("--set", choices=sorted(evidence.SIDES), default="cifar10", help="default: %(default)s")
    parser.add_argument("--data", type=Path, help="folder of the set, as benchmarks.datasets reads it or as ingest wrote it")
    parser.add_argument("--work", type=Path, help="folder for what evidence makes (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="default: %(default)s")
    parser.add_argument("--dry", action="store_true", help="tiny networks and few steps")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part == "speed":
        measure_speed(options.out / "speed.json", options.seconds, options.dry)
    elif options.part == "evidence":
        if options.data is None:
            parser.error("evidence needs --data")
        show_evidence(options)
    else:
        text = table(options.out)
        (options.out / "README.md").write_text(text)
        print(text)


def measure_speed(path: Path, seconds: float, dry: bool) -> None:
    """Each case that is not in `path` yet, as far as the time allows."""
    begin, record = time.monotonic(), {"machine": describe(this_process().device), "dry": dry}
    results: dict[str, Any] = {**record, "cases": {}}
    if path.exists() and (there := json.loads(path.read_text())) and {key: there.get(key) for key in record} == record:
        results = there
    for case in CASES:
        if case.name in results["cases"]:
            continue
        if time.monotonic() - begin > seconds - EACH:
            print(f"no time is left for: {case.name}")
            continue
        try:
            results["cases"][case.name] = speed.measure(case, dry)
        except Exception as error:  # the others are worth the device's time all the same
            results["cases"][case.name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(case.name, results["cases"][case.name], flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def show_evidence(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = evidence.run(options.set, options.data, options.work or Path(folder), options.seconds, options.dry)
    result = {"machine": describe(this_process().device), "dry": options.dry, **made}
    (options.out / "evidence.json").write_text(json.dumps(result, indent=1) + "\n")


def table(out: Path) -> str:
    """As Markdown, of what is there."""
    lines = []
    for name, render in (("speed", speed_table), ("evidence", evidence_table)):
        if (path := out / f"{name}.json").exists():
            record = json.loads(path.read_text())
            machine = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
            dry = " A dry run: its figures mean nothing." if record["dry"] else ""
            lines += [f"## {name.capitalize()}", "", f"{machine}.{dry}", "", render(record), ""]
    return "\n".join(lines)


def speed_table(record: dict[str, Any]) -> str:
    rows = [["", "side", "batch", "img/s", "GFLOP/img", "TFLOP/s", "MFU", "data wait", "peak GB"]]
    for name, f in record["cases"].items():
        if "error" in f:
            rows.append([name, f["error"], *[""] * 7])
            continue
        mfu, memory = (None if f["mfu"] is None else f"{f['mfu']:.1%}"), (None if f["peak_gb"] is None else f"{f['peak_gb']:.1f}")
        speeds = f"{f['img_per_s']:.0f}", f"{f['gflop_per_img']:.1f}", f"{f['tflop_per_s']:.1f}"
        rows.append([name, str(f["side"]), str(f["batch"]), *speeds, mfu or "", f"{f['data_wait']:.1%}", memory or ""])
    return f"{markdown(rows)}\n\nWanted: an MFU of {GOALS['mfu']:.0%} in distillation, a data wait below {GOALS['data_wait']:.0%}."


def evidence_table(record: dict[str, Any]) -> str:
    rows = [["student", "init", "seed", "top-1"]]
    for student, figures in record["students"].items():
        rows += [[student, row["init"], str(row["seed"]), f"{row['top1']:.1%}"] for row in figures["rows"]]
    teacher = record["settings"]["teacher"]
    return f"{record['set']}, EDM after {teacher['steps']} steps of {teacher['batch_size']} pictures.\n\n{markdown(rows)}"


if __name__ == "__main__":
    main()
