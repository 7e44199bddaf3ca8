"""Plain tables that dvc, spreadsheets and people read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write `rows` as CSV, columns in the order in which they first appear; a row without a column leaves it empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
