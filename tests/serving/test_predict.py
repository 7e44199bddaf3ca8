import csv
import errno
import json
import os
import socket
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import tritonclient.http
from PIL import Image
from serving_samples import PARAMS, make_model
from tritonclient.utils import InferenceServerException

from dreamteacher.data.dataset import ImageSet, Sample
from dreamteacher.data.transforms import full_image
from dreamteacher.errors import UserError
from dreamteacher.onnx_files import read_metadata
from dreamteacher.serving.contract import Contract, prepare
from dreamteacher.serving.predict import predict
from dreamteacher.serving.triton_repository import write_repository
from dreamteacher.serving.triton_server import running_triton
from dreamteacher.settings.schema import Params
from dreamteacher.stages import ingest
from dreamteacher.tasks.base import get_task
from dreamteacher.tasks.model import load_task_model, normalize
from dreamteacher.tasks.scoring import score, whole_batches


def save_picture(path, height, width, seed=0):
    """A smooth coloured picture, so that reducing it does not make noise of it."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def url(triton, protocol):
    return {"http": f"http://{triton.http_url}", "grpc": triton.grpc_url}[protocol]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_mask_and_overlay_show_what_the_torch_model_says(triton, tmp_path, capsys, protocol):
    picture = save_picture(tmp_path / "a.png", 40, 45)  # no multiple of 32, below the short side: padded, not scaled
    predict([picture], url(triton, protocol), "cells", tmp_path / "out", protocol=protocol)
    pixels = np.asarray(Image.open(picture))
    model = make_model("segmentation")
    image = full_image(32)(Sample(pixels, None, "a"))["image"][None]
    expected = model(normalize(image, model.mean, model.std))[0, :, :40, :45].argmax(0).numpy()
    mask = Image.open(tmp_path / "out" / "a.mask.png")
    assert (np.asarray(mask) == expected).all() and len(np.unique(expected)) > 1
    overlay = np.asarray(Image.open(tmp_path / "out" / "a.overlay.png"))
    assert (overlay[expected == 0] == pixels[expected == 0]).all()
    assert (overlay[expected == 1] != pixels[expected == 1]).any()
    share = (expected == 1).mean()
    assert f"{picture}: background " in (line := capsys.readouterr().out) and f"cell {share:.1%}" in line


def test_large_picture_is_reduced_as_in_training_and_its_mask_enlarged_again(triton, tmp_path):
    picture = save_picture(tmp_path / "large.png", 130, 200)
    predict([picture], url(triton, "http"), "cells", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "large.mask.png").size == (200, 130)
    assert Image.open(tmp_path / "out" / "large.overlay.png").size == (200, 130)
    predict([picture], url(triton, "http"), "cells", tmp_path / "out", features=True)
    with np.load(tmp_path / "out" / "large.npz") as features:
        assert features["size"].tolist() == [48, 74]  # the short side that ingest had
        assert features["stride4"].shape[1:] == (64 // 4, 96 // 4)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_features_are_those_of_onnxruntime(triton, models, tmp_path, protocol):
    picture = save_picture(tmp_path / "a.png", 32, 64)
    predict([picture], url(triton, protocol), "cells", tmp_path / "out", protocol=protocol, features=True)
    assert (tmp_path / "out" / "a.mask.png").exists()
    session = onnxruntime.InferenceSession(str(models["cells-backbone"]), providers=["CPUExecutionProvider"])
    parameters = {prop.key: prop.value for prop in onnx.load(models["cells-backbone"]).metadata_props}
    mean, std = (np.array(json.loads(parameters[key]), np.float32) for key in ("mean", "std"))
    images = ((np.asarray(Image.open(picture)) / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)[None]
    with np.load(tmp_path / "out" / "a.npz") as features:
        for output, expected in zip(session.get_outputs(), session.run(None, {"images": images}), strict=True):
            assert np.abs(features[output.name] - expected[0]).max() < 1e-4


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_many_pictures_of_many_kinds_give_a_line_each_in_order(triton, tmp_path, capsys, protocol):
    pictures = [save_picture(tmp_path / f"{i:02}.png", 24 + i, 60 - i, seed=i) for i in range(30)]
    Image.open(pictures[3]).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.open(pictures[4]).convert("LA").save(tmp_path / "alpha.png")
    pictures += [tmp_path / "cmyk.jpg", tmp_path / "alpha.png"]
    predict(pictures, url(triton, protocol), "stages", protocol=protocol)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(path) for path in pictures]
    assert all(any(f"{name} 0." in line for name in ("early", "middle", "late", "done")) for line in lines)


def test_class_and_probability_are_the_model_s(triton, tmp_path, capsys):
    picture = save_picture(tmp_path / "a.png", 32, 32)
    predict([picture], url(triton, "http"), "stages")
    model = make_model("classification")
    image = full_image(32)(Sample(np.asarray(Image.open(picture)), None, "a"))["image"][None]
    share, best = model(normalize(image, model.mean, model.std))[0].softmax(0).max(0)
    assert capsys.readouterr().out.startswith(f"{picture}: {model.classes[best]} {share:.3f}")


def test_predict_sees_and_says_what_evaluation_sees_and_says(triton, project, models, here, capsys):
    """Real ingest and scoring on one side, Triton and the client on the other; pictures above and below short_side and the task's side."""
    model = load_task_model(project / "finetuned" / "classification")
    sizes = [(200, 130), (130, 200), (40, 44), (20, 30), (48, 300), (32, 32)]
    paths = [save_picture(here / "in" / "val" / model.classes[i % 4] / f"{i}.png", *size, seed=i) for i, size in enumerate(sizes)]
    for i in (0, 1):
        save_picture(here / "in" / "train" / model.classes[i] / f"train{i}.png", 50, 50, seed=9 + i)
    (here / "in" / "classes.txt").write_text("\n".join(model.classes))
    metadata = read_metadata(models["stages"])
    ingest.run(Params(ingest={"short_side": json.loads(metadata["short_side"])}), source=here / "in", out=here / "data")
    val = ImageSet(here / "data", "val")
    _, predicted = score(model, val, 4, torch.device("cpu"), keep=range(len(val)))
    predict(paths, url(triton, "http"), "stages")
    answers = {Path(line.split(": ")[0]).name: line.split(": ")[1].split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {Path(val.names[i]).name: model.classes[label] for i, label in predicted.items()} == answers
    assert len(set(answers.values())) > 1
    contract = Contract.from_metadata(metadata, "stages")
    for indices, batch in whole_batches(val, list(range(len(val))), 1, get_task(model.task).picture_size(model.size)):
        tensor, _ = prepare(np.asarray(Image.open(here / "in" / val.names[indices[0]])), contract)
        step = 1 / 255 / min(model.std)  # Pillow and torchvision may round differently
        assert np.abs(tensor - normalize(batch["image"], model.mean, model.std).numpy()).max() < 1.01 * step


def test_bad_pictures_are_named_and_the_others_done(triton, tmp_path, capsys):
    good = save_picture(tmp_path / "good.png", 32, 32)
    (tmp_path / "text.png").write_text("no picture")
    pictures = [tmp_path / "text.png", good, tmp_path / "missing.png", tmp_path / "empty"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="3 of 4 pictures"):
        predict(pictures, url(triton, "http"), "cells", tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"BAD {pictures[0]}: picture is a text") and lines[2].startswith(f"BAD {pictures[2]}: No such file")
    assert lines[3] == f"BAD {tmp_path / 'empty'}: there is no picture in it; name pictures, such as {tmp_path / 'empty'}/*.jpg"
    assert lines[1].startswith(f"{good}: ") and (tmp_path / "out" / "good.mask.png").exists()


def test_pictures_of_one_name_do_not_overwrite_each_other(triton, tmp_path):
    pictures = [save_picture(tmp_path / name, 32, 32) for name in ("a/1.png", "b/1.png", "b/1-2.png")]
    predict(pictures, url(triton, "http"), "cells", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mask.png")) == ["1-2-2.mask.png", "1-2.mask.png", "1.mask.png"]


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:abc", "::::", "http://", ":8000"])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_what_is_no_address_is_one_line(tmp_path, address):
    with pytest.raises(UserError, match=rf"--url {address} is no address; write HOST:PORT as `dreamteacher serve` prints it"):
        predict([save_picture(tmp_path / "a.png", 32, 32)], address, "cells")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_one_line_when_the_server_is_not_there(tmp_path, protocol):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "no-such-host.invalid:8000"):
        with pytest.raises(UserError, match=r"no Triton answers at .*dreamteacher serve") as error:
            predict([save_picture(tmp_path / "a.png", 32, 32)], address, "cells", protocol=protocol)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_address_of_the_other_protocol_is_no_traceback(triton, tmp_path, protocol):
    other = {"http": triton.grpc_url, "grpc": triton.http_url}[protocol]
    with pytest.raises(UserError, match="no Triton answers"):
        predict([save_picture(tmp_path / "a.png", 32, 32)], other, "cells", protocol=protocol)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_unknown_model_names_those_that_are_served(triton, tmp_path, protocol):
    with pytest.raises(UserError, match="no model 'cell'; it has cells, cells-backbone, cells-pictures, stages, stages-pictures"):
        predict([save_picture(tmp_path / "a.png", 32, 32)], url(triton, protocol), "cell", protocol=protocol)


@pytest.mark.parametrize("out", [".", "answers"])
def test_answers_do_not_lie_among_the_pictures(tmp_path, out):
    save_picture(tmp_path / "shots/a.png", 32, 32)
    with pytest.raises(UserError, match=f"--out .*shots.* lies in {tmp_path}/shots, among the pictures; name a folder outside"):
        predict([tmp_path / "shots"], "127.0.0.1:1", "cells", tmp_path / "shots" / out)
    assert [path.name for path in (tmp_path / "shots").iterdir()] == ["a.png"]


def test_features_need_a_folder(triton, tmp_path):
    with pytest.raises(UserError, match="--out"):
        predict([save_picture(tmp_path / "a.png", 32, 32)], url(triton, "http"), "cells", features=True)


def test_failure_inside_the_server_is_one_line(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_repository({"cells": models["cells"]}, tmp_path / "local", backend="python", settings=PARAMS.publish)
    code = tmp_path / "local" / "cells" / "1" / "model.py"
    failing = "            if images[0].shape[3] == 64:\n                raise MemoryError('out of memory')\n            results = self"
    code.write_text(code.read_text().replace("            results = self", failing))
    with running_triton(tmp_path / "local") as triton, pytest.raises(UserError, match=r"refuses .*out of memory"):
        predict([save_picture(tmp_path / "a.png", 32, 64)], triton.http_url, "cells")


def lines_of(capsys, pictures, triton, model, **options):
    predict(pictures, triton.http_url, model, **options)
    return capsys.readouterr().out.splitlines()


def test_folders_and_patterns_are_the_pictures_that_they_hold(triton, tmp_path, capsys):
    names = ["b/2.png", "b/c/3.JPG", "a/1.png"]
    for name in names:
        save_picture(tmp_path / name, 32, 32)
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    (tmp_path / "b" / ".cache").mkdir()
    save_picture(tmp_path / "b" / ".cache" / "4.png", 32, 32)
    save_picture(tmp_path / "b" / "@eaDir" / "5.png", 32, 32)
    lines = lines_of(capsys, [tmp_path / "b", tmp_path / "*" / "1.png", tmp_path / "**" / "3.*"], triton, "stages")
    assert [line.split(": ")[0] for line in lines] == [str(tmp_path / name) for name in [*names, "b/c/3.JPG"]]
    odd = save_picture(tmp_path / "[1].png", 32, 32)
    assert lines_of(capsys, [odd], triton, "stages")[0].startswith(f"{odd}: ")
    with pytest.raises(UserError, match="1 of 1 pictures"):
        predict([tmp_path / "*.gif"], triton.http_url, "stages")
    assert capsys.readouterr().out == f"BAD {tmp_path}/*.gif: No such file or directory\n"


def test_a_folder_that_cannot_be_read_is_reported(triton, tmp_path, capsys, monkeypatch):
    read = [save_picture(tmp_path / name, 32, 32) for name in ("shots/1.png", "shots/b/2.png")]
    (tmp_path / "shots/a").mkdir()
    scandir, read_bytes = os.scandir, Path.read_bytes
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "shots/a"))

    def refuse(path):
        if str(path) == denied.filename:
            raise denied
        return path

    monkeypatch.setattr(os, "scandir", lambda path: scandir(refuse(path)))
    monkeypatch.setattr(Path, "read_bytes", lambda path: read_bytes(refuse(path)))
    with pytest.raises(UserError, match="1 of 3 pictures or folders could not be read"):
        predict([tmp_path / "shots"], triton.http_url, "stages")
    *answers, bad = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in answers] == list(map(str, read))
    assert bad == f"BAD {tmp_path}/shots/a: Permission denied"


def test_batches_say_what_single_pictures_say(triton, tmp_path, capsys):
    for i in range(11):
        save_picture(tmp_path / f"{i:02}.png", 32 + 32 * (i % 2), 32 + 5 * (i % 3), seed=i)
    (tmp_path / "05.png").write_bytes(b"damaged")
    answers = []
    for batch in (1, 4, 64):
        with pytest.raises(UserError, match="1 of 11 pictures"):
            predict([tmp_path], triton.http_url, "stages", batch=batch)
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2]


def test_json_lines_and_csv_hold_all_of_the_answer(triton, tmp_path, capsys):
    good, bad = save_picture(tmp_path / "a, 1.png", 32, 32), tmp_path / "bad.png"
    bad.write_bytes(b"")
    rows = {}
    for output in ("jsonl", "csv"):
        for model in ("cells", "stages"):
            with pytest.raises(UserError, match="see `error` in their lines"):
                predict([good, bad], triton.http_url, model, tmp_path / "out", output=output)
            text = capsys.readouterr().out
            rows[model, output] = list(csv.DictReader(text.splitlines())) if output == "csv" else list(map(json.loads, text.splitlines()))
    answer, failed = rows["stages", "jsonl"]
    assert answer["picture"] == str(good) and sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["class"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert failed == {"picture": str(bad), "error": "picture is empty (0 bytes)"}
    assert [float(rows["stages", "csv"][0][name]) for name in answer["probabilities"]] == list(answer["probabilities"].values())
    assert rows["stages", "csv"][1]["error"] == "picture is empty (0 bytes)"
    answer, _ = rows["cells", "jsonl"]
    assert Path(answer["mask"]).exists() and Path(answer["overlay"]).exists()
    assert sum(answer["shares"].values()) == pytest.approx(1)
    assert rows["cells", "csv"][0]["mask"] == answer["mask"] and float(rows["cells", "csv"][0]["cell"]) == answer["shares"]["cell"]


def test_a_picture_too_thin_to_be_prepared_is_bad_and_the_others_are_done(triton, tmp_path, capsys):
    thin = tmp_path / "thin.png"
    Image.new("RGB", (4_000_000, 1)).save(thin)  # 32 x 4,000,000 when padded
    good = save_picture(tmp_path / "good.png", 32, 32)
    with pytest.raises(UserError, match="1 of 2 pictures"):
        predict([thin, good], triton.http_url, "cells", batch=2)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"BAD {thin}: too thin or too large") and second.startswith(f"{good}: ")


def test_the_index_of_models_may_be_closed(triton, tmp_path, monkeypatch):
    """As production servers have it: what is needed is the model's configuration."""

    def closed(*_, **__):
        raise InferenceServerException("forbidden", status="403")

    monkeypatch.setattr(tritonclient.http.InferenceServerClient, "get_model_repository_index", closed)
    picture = save_picture(tmp_path / "a.png", 32, 32)
    predict([picture], triton.http_url, "cells")
    with pytest.raises(UserError, match=r"refuses \(model 'cell'\)"):
        predict([picture], triton.http_url, "cell")


def test_the_model_that_takes_files_is_asked_alike(triton, tmp_path, capsys):
    pictures = [save_picture(tmp_path / f"{i}.png", 40 + 50 * i, 60, seed=i) for i in range(3)]
    for batch in (1, 2):
        plain, files = (lines_of(capsys, pictures, triton, model, batch=batch) for model in ("cells", "cells-pictures"))
        assert plain == files
    predict(pictures, triton.http_url, "cells-pictures", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.overlay.png"))) == 3
