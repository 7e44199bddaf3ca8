"""A flipped bit in any file of any artifact is a one-line error of every reader."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from tiny_chain import INITS, Chain

import dreamteacher
from dreamteacher.errors import UserError
from dreamteacher.serving.triton_server import running_triton
from dreamteacher.stage import open_stage
from dreamteacher.stages import compare_data, evaluate, export_onnx, finetune, gate, promote, publish

Readers = dict[str, tuple[set[Path], Callable[[], object]]]


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    """Flip one bit in the middle of `path` in the block."""
    content, status = path.read_bytes(), path.stat()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :])
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def assert_noticed(readers: Readers) -> None:
    """Each file of each folder, with each of its readers."""
    for name, (folders, read) in readers.items():
        for folder in folders:
            assert (folder / "stage.json").exists(), folder
            for path in all_files(folder):
                with flipped(path), pytest.raises(UserError) as caught:
                    read()
                assert str(caught.value).startswith(f"{path} is damaged ("), (name, caught.value)
                assert "dvc checkout" in str(caught.value)
                assert "\n" not in str(caught.value)


def test_training_stages_notice_it_in_what_they_read_and_in_their_finished_output(chain: Chain) -> None:
    readers: Readers = {}
    for name, call in chain.calls().items():
        assert isinstance(call, partial)
        folders = {value for key, value in call.keywords.items() if isinstance(value, Path) and key != "source"}
        readers[name] = folders, call
    read = set.union(*(folders for folders, _ in readers.values()))
    assert read >= {chain.root / name for name in ("data", "teacher", "features", "interpreter", "labels", "mix")}
    assert_noticed(readers)


def test_evaluation_export_and_whoever_loads_a_model_notice_it(chain: Chain, tmp_path: Path) -> None:
    models = {tmp_path / "models" / init / "0": chain.root / "finetune" / init for init in INITS}
    for place, model in models.items():
        shutil.copytree(model, place)
    at = {name: chain.root / name for name in ("data", "teacher", "features")}
    places = {name: tmp_path / name for name in ("out", "metrics", "plots")}
    one = tmp_path / "models/mix/0"
    made = {"data": at["data"], "teachers": chain.root, "backbones": chain.root, "finetuned": tmp_path / "models"}
    evaluation = partial(evaluate.run, chain.params, **made, **places)
    export = partial(export_onnx.run, chain.params, data=at["data"], finetuned=one, out=tmp_path / "onnx")
    assert_noticed(
        {
            "evaluate": ({*at.values(), *models}, evaluation),
            "export-onnx": ({at["data"], one}, export),
            "load": ({one}, partial(dreamteacher.load, one)),
            "compare-data": (
                {at["data"], at["features"]},
                partial(compare_data.run, chain.params, data=at["data"], features=at["features"], out=tmp_path / "new"),
            ),
        }
    )
    assert not (tmp_path / "out").exists()


def test_a_model_without_its_record_is_one_line_as_well(chain: Chain, tmp_path: Path) -> None:
    shutil.copytree(chain.root / "finetune/scratch", tmp_path / "model")
    (tmp_path / "model/stage.json").unlink()
    head = tmp_path / "model/head.safetensors"
    head.write_bytes(head.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model is damaged \(.*\); copy it again"):
        dreamteacher.load(tmp_path / "model")


def test_what_delivers_a_model_notices_it(chain: Chain, tmp_path: Path) -> None:
    made = {
        "export-onnx": ["model.onnx", "backbone.onnx"],
        "evaluate": ["metrics.json", "per_model.csv", "overlays/0.png"],
        "publish": ["local/cells/config.pbtxt", "local/cells/1/model.onnx"],
        "gate": ["verdict.json"],
    }
    for stage, files in made.items():  # only their records are looked at before they are refused
        with open_stage(stage, params={}, inputs={}, out=tmp_path / stage) as opened:
            for file in files:
                (opened.tmp / file).parent.mkdir(parents=True, exist_ok=True)
                (opened.tmp / file).write_text(f"content of {file}")
    onnx, evaluation, data = tmp_path / "export-onnx", tmp_path / "evaluate", chain.root / "data"

    def serve() -> None:
        with running_triton(tmp_path / "publish/local"):
            pass

    assert_noticed(
        {
            "publish": ({onnx, evaluation}, partial(publish.run, chain.params, onnx=onnx, evaluation=evaluation, out=tmp_path / "triton")),
            "gate": (
                {onnx, evaluation, data},
                partial(gate.run, chain.params, data=data, onnx=onnx, evaluation=evaluation, out=tmp_path / "verdict"),
            ),
            "promote": ({tmp_path / "gate"}, partial(promote.run, chain.params, gate=tmp_path / "gate", onnx=onnx)),
            "serve": ({tmp_path / "publish"}, serve),
        }
    )


@pytest.mark.parametrize("chain", ["segmentation"], indirect=True)
def test_a_stopped_run_is_resumed_with_other_workers_and_checkpoints(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those settings are no part of the result, which is the same to the byte."""
    from dreamteacher.training.run import Run

    taken: list[int] = []
    take_step = Run.take_step

    def counted(self: Run, *arguments: object) -> None:
        if stop_after is not None and self.done == stop_after:
            raise KeyboardInterrupt
        take_step(self, *arguments)  # type: ignore[arg-type]
        taken.append(self.done)

    def params(**changes: object) -> object:
        settings = chain.params.finetune.model_copy(update=changes)
        return chain.params.model_copy(update={"finetune": settings})

    monkeypatch.setattr(Run, "take_step", counted)
    monkeypatch.setenv("DREAMTEACHER_CHECKPOINTS", str(tmp_path / "checkpoints"))
    run = partial(finetune.run, data=chain.root / "data", init="scratch", seed=0, out=tmp_path / "model")
    stop_after: int | None = 3
    with pytest.raises(KeyboardInterrupt):
        run(params(workers=0, checkpoint_every=1))
    stop_after = None
    run(params(workers=2, checkpoint_every=50))
    assert taken == [1, 2, 3, 4]
    whole = chain.root / "finetune/scratch"
    names = [path.relative_to(whole) for path in all_files(whole)]
    assert [name for name in names if (whole / name).read_bytes() != (tmp_path / "model" / name).read_bytes()] == []
