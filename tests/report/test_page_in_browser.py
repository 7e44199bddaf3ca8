"""The report in a browser: it fits desktop and phone, light and dark, and loads nothing."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser, browser
from PIL import Image

from dreamteacher.stages import report
from made_up_run import Maker, settings

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium here to look at the page with: apt-get install chromium")
UNDECODED = """Promise.all([...document.images].map(image => image.decode().then(() => image.naturalWidth, () => 0)))
    .then(widths => widths.filter(width => !width).length)"""
# Plots whose words lie outside of them are cut off.
CUT = """[...document.querySelectorAll('svg')].filter(svg => { const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].some(text => { const own = text.getBoundingClientRect();
        return own.left < box.left - 3 || own.right > box.right + 3; }) }).map(svg => svg.getAttribute('aria-label'))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    classes = ("background", "a class with a long name without any sense", "x" * 80)
    maker = Maker(folder / "artifacts", classes=classes).whole()
    maker.retrained()
    maker.assessed()
    report.run(settings(), artifacts=folder / "artifacts", out=folder / "report")
    return folder / "report" / report.PAGE


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 900, "light"), (390, 844, "light"), (1280, 900, "dark")])
def test_the_page_is_shown_whole(page: Path, chromium: Browser, width: int, height: int, scheme: str) -> None:
    chromium.open(page, width, height, scheme)
    chromium.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert chromium.evaluate(UNDECODED) == 0
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate(CUT) == []
    complaints = [
        m for m in chromium.messages if m.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    ]
    assert not complaints
    requested = [m["params"]["request"]["url"] for m in chromium.messages if m.get("method") == "Network.requestWillBeSent"]
    assert [url for url in requested if not url.startswith("data:")] == [page.absolute().as_uri()]
    with Image.open(io.BytesIO(chromium.screenshot())) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] == width and pixels.shape[0] > 2 * height
    paper = np.bincount(pixels.ravel()).argmax()
    assert (paper > 240) if scheme == "light" else (paper < 40)
    bands = np.array_split(pixels, pixels.shape[0] // height)  # none of which is empty
    assert all((band != paper).mean() > 0.01 for band in bands)
