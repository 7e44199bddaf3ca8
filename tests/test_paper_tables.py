"""The settings files of the paper's tables, and the figures made of a run."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from benchmarks.paper.__main__ import TABLES, make_project, settings_of
from benchmarks.paper.comparison import markdown
from dreamteacher.errors import UserError
from dreamteacher.report.paired import paired
from helpers import PROJECT

NAMES = sorted(path.stem for path in TABLES.glob("*.yaml"))
ROWS = list(
    csv.DictReader(
        ["init,seed,miou,linear_miou", "scratch,0,0.60,0.30", "scratch,1,0.70,0.32", "scratch,2,0.50,0.31",
         "mse,0,0.65,0.40", "mse,1,0.72,0.41", "mse,2,0.58,0.42"]
    )
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_each_table_is_a_project_that_dvc_reads(name: str, tmp_path: Path) -> None:
    settings = settings_of(name, PROJECT, [0, 1], ["finetune.steps=7"])
    assert settings["finetune"]["steps"] == 7
    assert settings["student"]["backbone"] == "resnet18"
    folder = make_project(tmp_path / "work", PROJECT, settings)
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"], cwd=folder, capture_output=True, text=True, check=True
    )
    stages = listed.stdout.split()
    for init in settings["compare"]["inits"]:
        assert {f"finetune@{init}-0", f"finetune@{init}-1"} <= set(stages)
    assert {f"distill-features@{name}" for name in settings["recipes"]} <= set(stages)


def test_what_is_set_is_checked_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"recipes\.t350: distill\.T = 350 must be below teacher\.T_train = 300"):
        settings_of("tab11-steps", PROJECT, [0], ["teacher.T_train=300"])


def test_a_gain_is_that_over_the_same_draws_with_the_interval_of_students_t() -> None:
    gain, half = paired(ROWS, "miou", "mse", "scratch")
    assert gain == pytest.approx((0.05 + 0.02 + 0.08) / 3)
    interval = ttest_rel([0.65, 0.72, 0.58], [0.60, 0.70, 0.50]).confidence_interval(0.95)
    assert (gain - half, gain + half) == pytest.approx((interval.low, interval.high))
    assert paired(ROWS[:1] + ROWS[3:4], "miou", "mse", "scratch")[1] != paired(ROWS, "miou", "mse", "scratch")[1]


def test_the_table_has_a_line_for_each_initialisation() -> None:
    assert markdown(ROWS, "miou").splitlines()[2:] == ["| scratch | 60.0 ± 10.0 |  | 31.0 |", "| mse | 65.0 ± 7.0 | +5.0 ± 7.5 | 41.0 |"]
