"""The step `report` of a pipeline shows what the other steps made, wherever KFP put it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.report import report
from dreamteacher.cluster.artifacts import stage_outputs
from dreamteacher.stages.find_commit import SECTIONS
from made_up_run import Maker, settings


def artifact(path: Path, moved: Path) -> SimpleNamespace:
    """An output where KFP would put it: under a name that says nothing."""
    place = moved / str(len(list(moved.iterdir())))
    shutil.copytree(path, place)
    return SimpleNamespace(path=str(place), metadata={})


@pytest.mark.parametrize("retraining", [False, True])
def test_the_page_of_the_step_is_that_of_the_run(in_tmp: Path, retraining: bool) -> None:
    maker = Maker(in_tmp / "artifacts").whole()
    maker.retrained()
    moved = in_tmp / "pods"
    moved.mkdir()

    def made(*patterns: str) -> list[SimpleNamespace]:
        return [artifact(path, moved) for pattern in patterns for path in sorted(maker.artifacts.glob(pattern))]

    given = {"interpreters": made("interpreters/*/*"), "labels": made("backbones/mix/*"), "distilled": made("finetuned/features/*")}
    given |= {"mixed": made("finetuned/mix/*"), "fresh": made("finetuned/scratch/*")}
    given |= {"teachers": made("teachers/own"), "backbones": made("backbones/features")}
    if retraining:
        given |= {"drift": made("compare-data")[0], "verdict": made("gate")[0]}
    out, page = SimpleNamespace(path=str(in_tmp / "out"), metadata={}), SimpleNamespace(path=str(in_tmp / "ui/page"))
    plain = settings().section(*SECTIONS["report"])
    (data,), (evaluation,) = made("data"), made("evaluation")
    report.python_func(data=data, evaluation=evaluation, settings=plain, out=out, page=page, **given)
    text = Path(page.path).read_text()
    assert text == (in_tmp / "out/report.html").read_text()
    assert "Pretraining helps: features gains 10.3 points" in text
    assert "This run is incomplete" not in text
    assert ("40 pictures are new" in text and "Compared with champion version 3" in text) == retraining
    assert out.metadata["stage"] == "report" and out.metadata["features_gain"] == pytest.approx(0.31 / 3)


def test_outputs_of_stages_are_found_among_what_kfp_passes(tmp_path: Path) -> None:
    """None stands for an empty list and for an optional input; the teacher `none` is no output of a stage."""
    made = [SimpleNamespace(path=str(tmp_path / name)) for name in ("data", "none", "features")]
    for artifact in made:
        Path(artifact.path).mkdir()
    for artifact in (made[0], made[2]):
        (Path(artifact.path) / "stage.json").touch()
    assert stage_outputs(made[0], None, made[1:]) == [tmp_path / "data", tmp_path / "features"]
