"""Settings that `dreamteacher init` proposes for pictures and machine."""

from collections import Counter
from pathlib import Path

import pytest
from project_pictures import CPU, FAST, GPU, KINDS, draw, segmentation, unlabelled

from dreamteacher import cli
from dreamteacher.project import propose, survey
from dreamteacher.project.machine import Machine
from dreamteacher.settings.file import load_params
from dreamteacher.settings.presets import PRESETS
from dreamteacher.settings.schema import Params


def test_settings_follow_the_pictures(tmp_path: Path) -> None:
    values = {kind: propose.sizes(survey.survey(str(make(tmp_path / kind))), CPU) for kind, make in KINDS.items()}
    assert values["segmentation"]["ingest"] == {"source": str(tmp_path / "segmentation"), "short_side": None}
    assert values["segmentation"]["export"]["size"] == 128
    assert values["classification"]["finetune"]["resolution"] == values["classification"]["export"]["size"] == 32
    assert values["classification"]["ingest"]["val_fraction"] == 0.3, "15 labels: a tenth would leave one or two to measure by"
    assert values["unlabelled"]["ingest"] == {"source": str(tmp_path / "unlabelled"), "short_side": 128, "val_fraction": 0.0}
    assert values["unlabelled"]["distill"]["monitor_images"] == 1, "of 5 pictures 64 cannot be held out"
    for made in values.values():
        assert made["teacher"]["size"] == "tiny"
    on_gpu = propose.sizes(survey.survey(str(tmp_path / "unlabelled")), GPU)
    assert (on_gpu["teacher"], on_gpu["student"]["backbone"]) == (
        {"size": "small", "resolution": 64, "accumulate": 2},
        "resnet50",
    )
    assert values["classification"]["teacher"]["resolution"] == 32, "no crop is larger than the pictures"
    assert [made["distill"].get("margin") for made in values.values()] == [8, None, 8]
    assert all(made["finetune"]["augment"] == "natural" for made in values.values())


def test_a_proposal_for_boxes_has_no_label_recipes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for i in range(4):
            draw(tmp_path / f"images/{split}/{i}.png", 320, 240)
            (tmp_path / f"labels/{split}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"labels/{split}/{i}.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("names: [car, bus]\n")
    found = survey.survey(str(tmp_path))
    assert (found.task, found.classes, found.labelled, found.val) == ("detection", ["car", "bus"], 8, 4)
    values = propose.sizes(found, CPU)
    assert values["compare"]["inits"] == ["scratch", "features"]
    assert values["label_recipes"] == {}
    assert values["finetune"]["resolution"] == 128


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("side", [1, 16, 33, 64, 100, 256, 5000])
@pytest.mark.parametrize("task", ["segmentation", "classification", None])
def test_proposed_settings_are_valid_for_any_pictures(task: str | None, side: int, machine: Machine) -> None:
    for pictures, labelled in ((2, 1), (100, 7), (10_000_000, 100_000)):
        labels = {"segmentation": "masks", "classification": "folders", None: "none"}[task]
        found = survey.Survey(
            "p", labels, "there", task, ["a", "b"], pictures, labelled if task else 0, short_sides=Counter({side: pictures})
        )
        proposal = propose.propose(found, machine, FAST, propose.sizes(found, machine))
        text = propose.write(proposal, ["made"])
        Path("params.yaml").write_text(text)
        params = load_params(Path("params.yaml"))
        assert params.distill.monitor_images * 2 <= max(pictures, 2)
        assert params.export.size <= max(32, side)


@pytest.mark.parametrize("preset", ["paper", "best"])
def test_a_proposal_keeps_the_values_of_the_preset(preset: str, tmp_path: Path) -> None:
    """Its lines are not written over by what is proposed, but for what the machine decides."""
    values = propose.sizes(survey.survey(str(KINDS["segmentation"](tmp_path / "in"))), CPU, preset)
    params = Params.model_validate(propose.propose(survey.survey(str(tmp_path / "in")), CPU, FAST, values).values)
    assert (params.preset, params.teacher.size) == (preset, "tiny")
    assert params.distill.objectives == PRESETS[preset]["distill"]["objectives"]
    assert params.student.width == PRESETS[preset]["student"].get("width", 32)
    assert params.student.backbone == "resnet18"


def test_steps_fill_the_hours_that_the_user_has(tmp_path: Path) -> None:
    found = survey.Survey("p", "masks", "there", "segmentation", ["a", "b"], 5000, 2000, short_sides=Counter({128: 5000}))
    values = propose.sizes(found, CPU)
    hours = {wanted: propose.propose(found, CPU, FAST, values, wanted) for wanted in (0.01, 1, 3, 1000)}
    for wanted in (1, 3):
        assert hours[wanted].hours == pytest.approx(wanted, rel=0.1)
    assert hours[3].values["teacher"]["steps"] > 2 * hours[1].values["teacher"]["steps"]
    assert hours[1].values["compare"]["seeds"] == [0, 1, 2]
    assert hours[0.01].values["compare"]["seeds"] == [0], "one seed before fewer steps than make sense"
    assert hours[0.01].values["teacher"]["steps"] == propose.LEAST["teacher"]
    assert hours[1000].hours < 200, "more passes over the pictures gain nothing"


def test_a_chain_that_takes_longer_than_the_hours_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    segmentation(tmp_path / "pictures")
    assert cli.main(["init", "mine", "--source", "pictures", "--hours", "0.01"]) == 0
    output = capsys.readouterr().out
    assert "in 36 s nothing would be learnt: these are the fewest steps that make sense" in output
    assert "one seed only, so figures will have no spread" in output
    unlabelled(tmp_path / "others")
    assert cli.main(["init", "other", "--source", "others", "--hours", "0.01"]) == 0
    assert "one seed" not in capsys.readouterr().out
