from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamteacher.report.figures import pca_colours, save_bars, save_panels
from dreamteacher.report.summary import table
from dreamteacher.report.tables import write_table


def test_the_table_shows_points_spread_and_what_is_missing() -> None:
    scratch = {"miou_mean": 0.699, "miou_std": 0.0213, "linear_miou_mean": 0.5, "linear_miou_std": 0.01, "n_seeds": 3}
    lines = table({"scratch": scratch, "mix": {"miou_mean": 0.8, "miou_std": 0.0, "n_seeds": 1}}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["init", "mIoU mean ± std", "seeds", "frozen linear", "frozen kNN"]
    assert cells[2] == ["scratch", "69.9 ± 2.1", "3", "50.0 ± 1.0", "-"]
    assert cells[3] == ["mix", "80.0", "1", "-", "-"]
    assert len({len(line) for line in lines}) == 1


def test_the_table_of_classification_shows_top1() -> None:
    assert "top-1 mean ± std" in table({"scratch": {"top1_mean": 0.5, "top1_std": 0.1, "n_seeds": 2}})


def test_drawings_have_the_same_bytes_each_time(tmp_path: Path) -> None:
    picture = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    for name in "ab":
        save_panels([[("picture", picture), ("", None)]], tmp_path / name / "panels.png")
        save_bars({"scratch": [0.7, 0.72], "mix": [0.8]}, "mIoU", tmp_path / name / "bars.png")
    for name in ("panels.png", "bars.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        with Image.open(tmp_path / "a" / name) as image:
            assert "Software" not in image.info and image.width > 100


@pytest.mark.filterwarnings("error")
def test_characters_that_the_font_lacks_are_drawn_as_codes(tmp_path: Path) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    for name in ("\N{FOX FACE}", "\N{BEAR FACE}", r"$\fox$"):
        save_panels([[(f"truth: {name}\nmix: caf\u00e9", picture)]], tmp_path / f"{ord(name[0])}.png")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 3


def test_pca_colours_are_the_same_for_the_same_features_and_follow_the_main_direction() -> None:
    random = np.random.default_rng(0)
    ramp = np.linspace(-1, 1, 64).reshape(1, 8, 8)
    maps = (random.normal(size=(5, 1, 1)) * 10 * ramp + random.normal(size=(5, 8, 8)) * 0.1).astype(np.float32)
    (reference,), (same, shifted) = pca_colours([maps], [maps, maps + 100 * np.eye(5)[0][:, None, None].astype(np.float32)])
    assert (reference == same).all() and (reference != shifted).any()
    assert abs(np.corrcoef(reference[..., 0].ravel(), ramp.ravel())[0, 1]) > 0.99


def test_pca_colours_are_those_of_the_picture_and_not_of_its_border() -> None:
    random = np.random.default_rng(0)
    maps = random.normal(size=(5, 1, 1)) * np.linspace(-1, 1, 16) * np.ones((16, 1)) + random.normal(size=(5, 16, 16)) * 0.01
    loud = maps.copy()
    loud[3, [0, -1]] += 100
    loud[3, :, [0, -1]] -= 100
    (quiet,), _ = pca_colours([maps], [])
    (bordered,), _ = pca_colours([loud], [])
    assert (bordered[2:-2, 2:-2] == quiet[2:-2, 2:-2]).all()


@pytest.mark.parametrize("rows, expected", [([{"a": 1}, {"b": "x,y"}], 'a,b\n1,\n,"x,y"\n'), ([], "\n")])
def test_a_table_file_has_every_column(tmp_path: Path, rows: list, expected: str) -> None:
    write_table(rows, tmp_path / "new" / "t.csv")
    assert (tmp_path / "new" / "t.csv").read_text() == expected
