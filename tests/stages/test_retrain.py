"""Rounds of retraining on tiny pictures: new data, promotion, and the registry after each round."""

import json
import shutil

import mlflow
import pytest
from arrivals import UNTRAINED, Round, arrive, settings
from mlflow.tracking import MlflowClient
from tiny_chain import draw

from dreamteacher.errors import UserError
from dreamteacher.lifecycle.promotion import fetch_champion, rollback
from dreamteacher.stage import digest_of, read_stage
from dreamteacher.stages import distill_features, gate, promote, train_teacher


@pytest.fixture(scope="module")
def registry(new_database, tmp_path_factory):
    """A database, in which publish registers; nothing else is tracked."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri := new_database(folder))
        patch.delenv("DREAMTEACHER_TRACKING")
        yield MlflowClient(uri)
    mlflow.set_tracking_uri(None)


def aliases(registry: MlflowClient) -> dict[str, int]:
    return {alias: int(version) for alias, version in registry.get_registered_model("blobs").aliases.items()}


@pytest.fixture(scope="module")
def rounds(slim_unet, registry, tmp_path_factory) -> dict[str, Round]:
    """The rounds of the story, each asserted where it happens, since the next builds upon it.

    Which of two trained models is better depends on rounding. Therefore one of each compared pair has learned next to nothing:
    over seeds it has an mIoU of 0.02 to 0.57, and a trained one of 0.70 to 0.84.
    """
    root = tmp_path_factory.mktemp("rounds")
    source, incoming = draw("segmentation", root / "pictures"), root / "incoming"
    incoming.mkdir()
    made: dict[str, Round] = {}

    def start(name: str, **changes) -> Round:
        made[name] = Round(root / name, source, incoming, settings(source, **changes))
        return made[name]

    first = start("first", metric_floor=0, finetune=UNTRAINED).run()
    assert first and first.promoted, first
    assert aliases(registry) == {"champion": 1}

    arrive(incoming, range(12), brightness=60)
    second = start("more").run()
    assert second and second.promoted, second
    assert aliases(registry) == {"champion": 2, "previous": 1}

    assert start("nothing").run() is None
    assert aliases(registry) == {"champion": 2, "previous": 1}

    arrive(incoming, range(12, 19))
    whole = {path: path.read_bytes() for path in sorted(incoming.iterdir())}
    for path in list(whole)[:6]:
        path.write_bytes(whole[path][:100])
    with pytest.raises(UserError, match=r"6 of 19 incoming pictures cannot be used, more than ingest.max_bad_fraction"):
        start("corrupt").run()
    for path, content in whole.items():
        path.write_bytes(content)
    assert aliases(registry) == {"champion": 2, "previous": 1}

    worse = start("worse", finetune=UNTRAINED).run()
    assert worse and not worse.promoted, worse
    assert aliases(registry) == {"champion": 2, "previous": 1, "challenger": 3}

    assert start("again").run() is None  # what was refused is not tried again and again
    assert aliases(registry) == {"champion": 2, "previous": 1, "challenger": 3}
    return made


def test_rounds_end_as_they_should_and_nothing_is_lost(rounds, registry):
    assert [int(version.version) for version in registry.search_model_versions("name = 'blobs'")] == [3, 2, 1]
    assert {name: round.drift["n_new"] for name, round in rounds.items() if hasattr(round, "drift")} == {
        "first": 14, "more": 12, "nothing": 0, "worse": 7, "again": 0,
    }  # fmt: skip


def test_corrupt_pictures_stop_the_run_before_anything_is_trained(rounds):
    assert {path.name for path in rounds["corrupt"].root.iterdir()} == {"champion"}
    assert {path.name for path in rounds["nothing"].root.iterdir()} == {"champion", "data", "drift"}


def test_each_round_starts_from_the_champion_of_the_one_before(rounds):
    for stage in ("teacher", "features"):
        assert "start" not in read_stage(rounds["first"].root / stage)["inputs"]
        for name, before in (("more", "first"), ("worse", "more")):
            assert read_stage(rounds[name].root / stage)["inputs"]["start"] == digest_of(rounds[before].root / stage)


def test_the_refused_version_says_why(rounds, registry):
    verdict = rounds["worse"].verdict()
    assert not verdict["passed"]
    assert "no regression: miou" in verdict["reason"]
    failed = {check["name"] for check in verdict["checks"] if not check["passed"]}
    assert "no regression" in failed and not failed & {"parity", "latency"}
    tags = registry.get_model_version("blobs", "3").tags
    assert tags["refused"] == verdict["reason"]
    assert tags["lineage"].startswith("lineage/")  # so that it can still be promoted by hand


def test_drift_shows_what_changed(rounds):
    drift = json.loads((rounds["more"].root / "drift" / "drift.json").read_text())["shifts"]
    assert set(drift) == {"brightness", "size", "embedding"}
    assert drift["brightness"]["new"] - drift["brightness"]["old"] == pytest.approx(60 / 255, abs=0.03)
    assert drift["brightness"]["shift"] > 5 * drift["brightness"]["by_chance"]
    assert len((rounds["more"].root / "drift" / "new.txt").read_text().split()) == 12


def test_promoting_once_more_changes_nothing(rounds, registry):
    before = aliases(registry)
    assert rounds["more"].decide().promoted
    assert aliases(registry) == before
    artifacts = registry.list_artifacts(registry.get_model_version("blobs", "2").run_id, "lineage")
    assert len(artifacts) == 1


def test_rollback_exchanges_champion_and_previous_and_the_next_round_starts_from_it(rounds, registry, tmp_path):
    assert (rollback("blobs").champion, aliases(registry)) == ("1", {"champion": 1, "previous": 2, "challenger": 3})
    assert fetch_champion("blobs", tmp_path / "champion") == "1"
    assert digest_of(tmp_path / "champion" / "teacher") == digest_of(rounds["first"].root / "teacher")
    rollback("blobs")
    assert aliases(registry) == {"champion": 2, "previous": 1, "challenger": 3}


def test_promoting_by_hand_stores_what_the_version_was_made_from_if_it_is_here(rounds, registry, tmp_path, caplog):
    first, second = rounds["first"].root, rounds["more"].root
    for name, root in (("first", first), ("second", second)):
        for part, place in (
            ("data", "data"),
            ("teacher", "teachers/teacher"),
            ("features", "backbones/features"),
            ("evaluation", "evaluation"),
        ):
            (tmp_path / name / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / place).symlink_to(root / part)
    params = rounds["first"].params
    place = registry.get_model_version("blobs", "1").tags["lineage"]
    registry.delete_model_version_tag("blobs", "1", "lineage")
    promote.promote_manually(params, "blobs", artifacts=tmp_path / "second", version="1")
    assert "is not stored, and no retraining can start from it" in caplog.text
    assert "lineage" not in registry.get_model_version("blobs", "1").tags
    promote.promote_manually(params, "blobs", artifacts=tmp_path / "first", version="1")
    assert registry.get_model_version("blobs", "1").tags["lineage"] == place
    assert fetch_champion("blobs", tmp_path / "champion") == "1"
    promote.promote_manually(params, "blobs", artifacts=tmp_path / "second", version="2")


def test_a_model_on_a_changed_validation_split_is_refused_without_a_comparison(rounds, tmp_path):
    first = rounds["more"]
    champion = shutil.copytree(first.root / "champion", tmp_path / "champion")
    lines = (champion / "data/manifest.csv").read_text().splitlines(keepends=True)
    (champion / "data/manifest.csv").write_text("".join([lines[0], *lines[2:]]))
    options = {"onnx": first.root / "onnx", "evaluation": first.root / "evaluation", "champion": champion}
    with pytest.raises(UserError, match=r"data/manifest.csv is damaged"):
        gate.run(first.params, data=first.root / "data", out=tmp_path / "gate", **options)
    (champion / "data/stage.json").unlink()  # as if it were that of another data set
    assert gate.run(first.params, data=first.root / "data", out=tmp_path / "gate", **options)["passed"] == 0
    verdict = json.loads((tmp_path / "gate/verdict.json").read_text())
    assert verdict["reason"].startswith("same validation split: 1 validation pictures differ from the champion's")


@pytest.mark.parametrize("stage", ["teacher", "features"])
def test_a_start_of_another_size_is_one_line(stage, rounds, tmp_path):
    root, params = rounds["first"].root, rounds["first"].params
    if stage == "teacher":
        shutil.copytree(root / "teacher", tmp_path / "start")
        small = params.model_copy(update={"teacher": params.teacher.model_copy(update={"size": "small"})})
        with pytest.raises(UserError, match=r"start is a teacher of another size than teacher\.size"):
            train_teacher.run(small, data=root / "data", start=tmp_path / "start", out=tmp_path / "out")
    else:
        wide = params.model_copy(update={"student": params.student.model_copy(update={"width": 16})})
        with pytest.raises(UserError, match="has another backbone, neck or taps than the settings"):
            options = {"data": root / "data", "teacher": root / "teacher", "start": root / "features"}
            distill_features.run(wide, **options, out=tmp_path / "out")
