"""The speed of one GPU; benchmarks/gpu.sh runs it.

    python -m benchmarks.gpu [--seconds 240]

Writes OUT/speed.json after each case, and passes over what is there of the same device, versions and commit; then OUT/README.md, the table.
`--dry` runs the same code with tiny networks, on a CPU in a minute or two.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import speed
from benchmarks.gpu.cases import CASES
from benchmarks.gpu.machine import describe
from dreamteacher.report.summary import markdown
from dreamteacher.training.processes import this_process

GOALS = {"mfu": 0.45, "data_wait": 0.02}
EACH = 60  # seconds that a case may take; none is begun with less left


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="default: %(default)s")
    parser.add_argument("--dry", action="store_true", help="tiny networks and few steps")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    text = table(measure_speed(options.out / "speed.json", options.seconds, options.dry))
    (options.out / "README.md").write_text(text)
    print(text)


def measure_speed(path: Path, seconds: float, dry: bool) -> dict[str, Any]:
    """Each case that is not in `path` yet, as far as the time allows; returns all that it holds then."""
    begin, record = time.monotonic(), {"machine": describe(this_process().device), "dry": dry}
    results: dict[str, Any] = {**record, "cases": {}}
    if path.exists() and (there := json.loads(path.read_text())) and {key: there.get(key) for key in record} == record:
        results = there
    path.write_text(json.dumps(results, indent=1) + "\n")
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
    return results


def table(record: dict[str, Any]) -> str:
    """As Markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
    dry = " A dry run: its figures mean nothing." if record["dry"] else ""
    return f"## Speed\n\n{machine}.{dry}\n\n{speed_table(record)}\n"


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


if __name__ == "__main__":
    main()
