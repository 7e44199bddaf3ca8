import json
import logging
import os
import shutil
import time
from types import SimpleNamespace

import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
from mlflow.tracking import MlflowClient
from serving_samples import PARAMS, make_finetuned, make_model

from components.publish import publish as publish_step
from dreamteacher import outages
from dreamteacher.errors import UserError
from dreamteacher.lifecycle import promotion
from dreamteacher.lifecycle.promotion import fetch_champion
from dreamteacher.mlflow_server import PUBLISHED
from dreamteacher.serving.triton_repository import check_repository
from dreamteacher.settings.schema import Params
from dreamteacher.stage import digest_of, open_stage
from dreamteacher.stages import export_onnx, promote, publish
from dreamteacher.steps import effects
from dreamteacher.tracking import UNSENT, sync


@pytest.fixture
def registry(in_tmp, new_database, monkeypatch):
    """A client of the database that the stages of this test use."""
    uri = new_database(in_tmp)
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    yield MlflowClient(uri)  # absolute: MLflow keeps a connection for each name
    mlflow.set_tracking_uri(None)


def run_publish(project, out, onnx_folder=None, **options):
    return publish.run(PARAMS, onnx=onnx_folder or project / "onnx" / "segmentation", evaluation=project / "evaluation", out=out, **options)


def test_publish_writes_both_repositories(project, here):
    metrics = run_publish(project, here / "triton")
    for kind in ("production", "local"):
        assert check_repository(here / "triton" / kind) == ["cells", "cells-backbone", "cells-pictures"]
    assert (here / "triton" / "local" / "cells" / "1" / "model.py").exists()
    assert metrics["models"] == 3 and 0 < metrics["parity_max"] < 1e-4
    assert run_publish(project, here / "triton") == metrics  # done already


def test_registered_version_says_what_it_is_and_runs_equal(project, registry, in_tmp):
    run_publish(project, in_tmp / "triton")
    version = registry.get_model_version_by_alias("cells", "challenger")
    file = project / "onnx" / "segmentation" / "model.onnx"
    told = {prop.key: prop.value for prop in onnx.load(file).metadata_props}
    assert version.version == 1 or version.version == "1"
    assert version.tags["sha256"] == digest_of(file)
    assert set(version.tags) == {"sha256", "init", "evaluation", PUBLISHED}  # what promotion and sync read; the rest is in the card
    assert version.description.startswith("# cells\n\nSegmentation of background, cell, debris. Initialisation `mix`, seed 0.")
    assert "d" * 64 in version.description and told["git_revision"] in version.description
    assert "Alias `champion`: the version to serve" in registry.get_registered_model("cells").description

    mlflow.set_tracking_uri(f"sqlite:///{in_tmp}/mlflow.db")
    loaded = mlflow.onnx.load_model("models:/cells@challenger")
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 64), dtype=np.float32)
    ours = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"images": images})
    theirs = onnxruntime.InferenceSession(loaded.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"images": images})
    assert (ours[0] == theirs[0]).all()
    assert {prop.key: prop.value for prop in loaded.metadata_props} == told
    served = mlflow.pyfunc.load_model("models:/cells@challenger")
    assert np.abs(served.predict({"images": images})["logits"] - ours[0]).max() < 1e-5


def test_same_file_again_stays_one_version_and_a_new_one_takes_the_alias(project, registry, in_tmp, monkeypatch):
    run_publish(project, in_tmp / "triton")
    registry.delete_registered_model_alias("cells", "challenger")
    run_publish(project, in_tmp / "triton", overwrite=True)
    assert len(registry.search_model_versions("name = 'cells'")) == 1
    assert int(registry.get_model_version_by_alias("cells", "challenger").version) == 1

    monkeypatch.setenv("DREAMTEACHER_TRACKING", "off")
    make_finetuned(in_tmp / "finetuned", make_model("segmentation", seed=1))
    export_onnx.run(PARAMS, data=project / "data", finetuned=in_tmp / "finetuned", out=in_tmp / "onnx")
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "on")
    run_publish(project, in_tmp / "triton", in_tmp / "onnx", overwrite=True)
    assert int(registry.get_model_version_by_alias("cells", "challenger").version) == 2
    # Back to the first: the alias moves, the versions stay two.
    run_publish(project, in_tmp / "triton", overwrite=True)
    assert len(registry.search_model_versions("name = 'cells'")) == 2
    assert int(registry.get_model_version_by_alias("cells", "challenger").version) == 1


def test_publish_without_a_server_finishes_and_registers_later(project, registry, in_tmp, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        run_publish(project, in_tmp / "triton")
    assert "dreamteacher sync" in caplog.text
    assert check_repository(in_tmp / "triton" / "production") == ["cells", "cells-backbone", "cells-pictures"]
    assert len(list(UNSENT.iterdir())) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{in_tmp}/mlflow.db")
    sync()
    assert "81.2 ± 1.0" in registry.get_model_version_by_alias("cells", "challenger").description
    assert not list(UNSENT.iterdir())


@pytest.fixture(scope="module")
def two_exports(project, tmp_path_factory):
    """ONNX folders of two models."""
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMTEACHER_TRACKING", "off")
        make_finetuned(folder / "finetuned", make_model("segmentation", seed=1))
        export_onnx.run(PARAMS, data=project / "data", finetuned=folder / "finetuned", out=folder / "onnx")
    return {"A": project / "onnx" / "segmentation", "B": folder / "onnx"}


@pytest.mark.parametrize(
    ("order", "promoted", "challenger"),
    [
        ("aB", False, "B"),  # small letters: MLflow is down
        ("ABa", False, "A"),
        ("aBA", False, "A"),
        ("baA", False, "A"),
        ("aB", True, None),  # champion B is newer than A, which must not be offered as its challenger
    ],
)
def test_a_record_that_is_sent_late_takes_the_alias_from_nothing_newer(
    project, registry, in_tmp, monkeypatch, caplog, two_exports, order, promoted, challenger
):
    for letter in order:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9" if letter.islower() else f"sqlite:///{in_tmp}/mlflow.db")
        run_publish(project, in_tmp / "triton", two_exports[letter.upper()], overwrite=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{in_tmp}/mlflow.db")
    if promoted:
        promotion.promote("cells", version="1")
    sync()
    versions = {version.tags["sha256"]: version.version for version in registry.search_model_versions("name = 'cells'")}
    assert len(versions) == 2
    bearer = versions[digest_of(two_exports[challenger] / "model.onnx")] if challenger else None
    aliases = registry.get_registered_model("cells").aliases
    assert aliases.get("challenger") == bearer
    late = "was published before version 1 and sent after it, so it does not become challenger"
    assert (late in caplog.text) == (order in ("aB", "baA"))


def test_what_a_late_record_says_of_its_version_is_not_put_over_what_was_said_since(project, registry, in_tmp, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run_publish(project, in_tmp / "triton")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{in_tmp}/mlflow.db")
    with monkeypatch.context() as patch:
        patch.setenv("DREAMTEACHER_TRACKING", "off")
        with open_stage("evaluate", params={"n": 2}, inputs={}, out=in_tmp / "evaluation") as stage:
            (stage.tmp / "metrics.json").write_text(json.dumps({"mix": {"miou_mean": 0.9, "miou_std": 0.01, "n_seeds": 3}}))
    publish.run(PARAMS, onnx=project / "onnx" / "segmentation", evaluation=in_tmp / "evaluation", out=in_tmp / "triton", overwrite=True)
    sync()
    version = registry.get_model_version_by_alias("cells", "challenger")
    assert version.tags["evaluation"] == digest_of(in_tmp / "evaluation")
    assert "90.0 ± 1.0" in version.description


def test_a_version_that_another_program_registered_counts_from_its_creation(project, registry, in_tmp, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run_publish(project, in_tmp / "triton")
    registry.create_registered_model("cells", description="ours")
    run = registry.create_run("0")
    registry.create_model_version("cells", f"{run.info.artifact_uri}/model", run.info.run_id)
    registry.set_registered_model_alias("cells", "challenger", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{in_tmp}/mlflow.db")
    sync()
    assert int(registry.get_model_version_by_alias("cells", "challenger").version) == 1
    run_publish(project, in_tmp / "triton", overwrite=True)
    assert int(registry.get_model_version_by_alias("cells", "challenger").version) == 2
    assert registry.get_registered_model("cells").description == "ours"


def start_step(name, project, folder, teacher="own"):
    """A pipeline's step `publish` in a pod of its own; the model is called `name`, and builds on `teacher`, one of several."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMTEACHER_TRACKING", "off")
        for part, stage_name, params, file in (
            ("data", "ingest", {}, "manifest.csv"),
            ("other", "train-teacher", {"name": "other"}, "model"),
            ("teacher", "train-teacher", {"name": "own"}, "model"),
            ("features", "distill-features", {"recipe": "features"}, "backbone"),
            ("evaluation", "evaluate", {}, "metrics.json"),
        ):
            inputs = {{"teacher": "teachers/own", "features": "backbones/features"}.get(name, name): made[name] for name in made}
            with open_stage(stage_name, params=params, inputs=inputs if part == "evaluation" else {}, out=folder / part) as stage:
                (stage.tmp / file).write_text(json.dumps({"mix": {"miou_mean": 0.5, "n_seeds": 1}}))
            made[part] = folder / part
    made |= {"onnx": project / "onnx" / "segmentation", "out": folder / "triton"}
    artifacts = {place: SimpleNamespace(path=str(path), metadata={}) for place, path in made.items()}
    of_all = {"teachers": [artifacts.pop("other"), artifacts.pop("teacher")], "backbones": [artifacts.pop("features")]}
    artifacts |= of_all | {"teacher": teacher, "backbone": "features"}
    settings = PARAMS.publish.model_dump(mode="json") | {"name": name}
    publish_step.python_func(**artifacts, metrics=SimpleNamespace(log_metric=lambda *_: None), settings={"publish": settings})


def test_a_pipelines_publish_fails_until_the_model_is_registered(project, registry, in_tmp, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:9 does not accept the records \(.*Connection refused"):
            start_step("late", project, in_tmp / "first")
    shutil.rmtree(UNSENT)  # went with the pod
    params = PARAMS.model_copy(update={"publish": PARAMS.publish.model_copy(update={"name": "late"})})
    made = {part: in_tmp / "first" / part for part in promote.LINEAGE}
    with pytest.raises(UserError, match="has no model late; `dreamteacher publish` registers it"):
        publish.keep(params, onnx=project / "onnx" / "segmentation", **made, repository=in_tmp / "first" / "triton")
    start_step("late", project, in_tmp / "second")
    assert int(registry.get_model_version_by_alias("late", "challenger").version) == 1


def test_a_pipelines_publish_waits_until_mlflow_is_back_and_tells_finish(project, registry, in_tmp, monkeypatch, caplog):
    alive = os.environ["MLFLOW_TRACKING_URI"]
    for name, value in {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "DREAMTEACHER_WAIT_MINUTES": "1"}.items():
        monkeypatch.setenv(name, value)
    for name, value in {"DREAMTEACHER_RUNS": str(in_tmp / "runs"), "DREAMTEACHER_RUN": "1"}.items():
        monkeypatch.setenv(name, value)
    back = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: monkeypatch.setenv("MLFLOW_TRACKING_URI", alive))
    monkeypatch.setattr(outages, "time", back)
    start_step("awaited", project, in_tmp / "pod")
    assert int(registry.get_model_version_by_alias("awaited", "challenger").version) == 1
    assert len([line for line in caplog.messages if "next try in 10 s, for 1 more minutes at most (Ctrl-C ends it)" in line]) == 1
    assert effects("retrain") == {"publish": "done: version 1 of awaited", "promote": "not started"}


def test_a_pipelines_publish_stores_what_a_retraining_starts_from(project, registry, in_tmp, caplog):
    start_step("whole", project, in_tmp / "pod")
    promote.promote_manually(Params(), "whole", artifacts=in_tmp / "artifacts")  # on a laptop, where nothing of the run is
    assert not [record for record in caplog.records if "stored" in record.getMessage()]
    assert fetch_champion("whole", in_tmp / "champion") == "1"
    for part in ("teacher", "features", "evaluation"):
        assert digest_of(in_tmp / "champion" / part) == digest_of(in_tmp / "pod" / part)


def test_a_model_without_a_teacher_is_published_though_no_retraining_can_start_from_it(project, registry, in_tmp, caplog):
    start_step("alone", project, in_tmp / "pod", teacher="none")
    assert int(registry.get_model_version_by_alias("alone", "challenger").version) == 1
    assert "the recipe of alone has no teacher, so no retraining can start from version 1" in caplog.text


def test_without_tracking_a_pipelines_publish_registers_nothing(project, registry, in_tmp, monkeypatch):
    monkeypatch.setenv("DREAMTEACHER_TRACKING", "off")
    start_step("silent", project, in_tmp / "pod")
    assert not registry.search_registered_models("name = 'silent'")


def test_damaged_export_is_named_and_nothing_is_published(project, here):
    shutil.copytree(project / "onnx" / "segmentation", here / "onnx")
    data = (here / "onnx" / "model.onnx").read_bytes()
    (here / "onnx" / "model.onnx").write_bytes(data[:-1000])
    with pytest.raises(UserError, match=r"model\.onnx is damaged"):
        run_publish(project, here / "triton", here / "onnx")
    assert not (here / "triton").exists()
