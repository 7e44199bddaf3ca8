"""Figures of recipes over paired draws of labels, from evaluate's per_model.csv."""

from __future__ import annotations

from statistics import fmean, stdev

from dreamteacher.report.paired import Row, paired


def markdown(rows: list[Row], figure: str, reference: str = "scratch") -> str:
    """A line for each initialisation, in per cent: mean and sample standard deviation, and the paired gain over `reference`."""
    lines = [f"| | {figure} | over {reference}, 95 % | frozen, linear |", "| --- | --- | --- | --- |"]
    for init in dict.fromkeys(row["init"] for row in rows):
        values = [100 * float(row[figure]) for row in rows if row["init"] == init]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        gain, half = paired(rows, figure, init, reference)
        against = "" if init == reference else f"{100 * gain:+.1f} ± {100 * half:.1f}"
        frozen = [100 * float(row[f"linear_{figure}"]) for row in rows if row["init"] == init and row.get(f"linear_{figure}")]
        lines.append(f"| {init} | {fmean(values):.1f}{spread} | {against} | {f'{fmean(frozen):.1f}' if frozen else ''} |")
    return "\n".join(lines)
