"""NAME-pictures in a real tritonserver: picture files in, answers out."""

import ast
import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from serving_samples import PARAMS
from tritonclient.utils import InferenceServerException

from dreamteacher.errors import UserError
from dreamteacher.serving.client import Client
from dreamteacher.serving.pictures_repository import MODULES
from dreamteacher.serving.triton_repository import check_repository, write_repository
from dreamteacher.serving.triton_server import running_triton
from dreamteacher.settings.downstream import Publish
from helpers import PROJECT

LIBRARIES = {"http": tritonclient.http, "grpc": tritonclient.grpc}


def pixels(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned():
    """A JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(pixels(40, 70, 3), "JPEG", exif=exif)


def ask(triton, model, data, outputs, protocol="http"):
    library = LIBRARIES[protocol]
    with library.InferenceServerClient(getattr(triton, f"{protocol}_url")) as client:
        tensor = library.InferInput("picture", [1, len(data)], "UINT8")
        tensor.set_data_from_numpy(np.frombuffer(data, np.uint8)[None])
        result = client.infer(model, [tensor], outputs=[library.InferRequestedOutput(name) for name in outputs])
        return {name: result.as_numpy(name)[0] for name in outputs}


def read_mask(array):
    return np.asarray(Image.open(io.BytesIO(array.tobytes())))


PICTURES = {
    "jpeg": encoded(pixels(40, 45), "JPEG"),
    "turned": turned(),
    "large png": encoded(pixels(130, 200, 1), "PNG"),
    "webp": encoded(pixels(33, 64, 2), "WEBP"),
    "transparent": encoded(pixels(50, 50, 4).convert("RGBA"), "PNG"),
    "16 bits": encoded(Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)), "PNG"),
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_server_says_of_the_bytes_what_the_client_says_of_the_picture(triton, protocol):
    with Client(triton.http_url, "cells") as cells, Client(triton.http_url, "stages") as stages:
        for name, data in PICTURES.items():
            expected, features = cells.predict(data), cells.features(data)
            answer = ask(triton, "cells-pictures", data, ["mask", "shares", "embedding"], protocol)
            assert (read_mask(answer["mask"]) == expected.mask).all() and len(np.unique(expected.mask)) > 1, name
            assert np.abs(answer["shares"] - expected.shares).max() < 1e-6
            assert np.abs(answer["embedding"] - features.embedding).max() < 1e-4
            answer = ask(triton, "stages-pictures", data, ["probabilities"], protocol)
            assert np.abs(answer["probabilities"] - stages.predict(data).probabilities).max() < 1e-5
    assert read_mask(ask(triton, "cells-pictures", PICTURES["turned"], ["mask"])["mask"]).shape == (70, 40)
    assert read_mask(ask(triton, "cells-pictures", PICTURES["large png"], ["mask"])["mask"]).shape == (130, 200)


def test_the_embedding_alone_does_not_need_the_task_model(triton):
    with tritonclient.http.InferenceServerClient(triton.http_url) as client:

        def runs():
            (statistics,) = client.get_inference_statistics("cells")["model_stats"]
            return statistics["inference_count"]

        before = runs()
        ask(triton, "cells-pictures", PICTURES["jpeg"], ["embedding"])
        assert runs() == before
        ask(triton, "cells-pictures", PICTURES["jpeg"], ["shares"])
        assert runs() == before + 1


def test_32_clients_at_once_each_get_their_own_answer(triton):
    pictures = [encoded(pixels(32 + 20 * (i % 3), 40 + i, i), ("PNG", "JPEG", "WEBP")[i % 3]) for i in range(64)]
    with Client(triton.http_url, "stages") as client, ThreadPoolExecutor(32) as pool:
        expected = [answer.probabilities for answer in client.predict_batch(pictures)]
        answers = list(pool.map(lambda data: ask(triton, "stages-pictures", data, ["probabilities"])["probabilities"], pictures))
    assert len(np.unique(np.round(expected, 3), axis=0)) > 20
    assert np.abs(np.array(answers) - np.array(expected)).max() < 1e-5


def bomb(side):
    """A PNG of side x side black pixels, a few kB for 30000 x 30000."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes((side // 8 + 1) * side), 9))
        + chunk(b"IEND", b"")
    )


HOSTILE = {
    "empty": (b"", "empty"),
    "text": (b"no picture", "text"),
    "truncated jpeg": (PICTURES["jpeg"][:600], "damaged|truncated"),
    "truncated png": (PICTURES["large png"][:800], "damaged|truncated"),
    "header only": (b"\x89PNG\r\n\x1a\n", "picture is a PNG, which cannot be read"),
    "html polyglot": (b"<html><script>alert(1)</script>" + PICTURES["jpeg"], "picture is"),
    "zip": (b"PK\x03\x04" + bytes(100), "picture is"),
    "bomb": (bomb(30_000), "too large: 30000 x 30000 is more than 50000000 pixels"),
    "thin": (encoded(Image.new("1", (30_000_000, 1)), "PNG"), "too thin"),
    "noise": (np.random.default_rng(0).bytes(100_000), "not a picture in a known format"),
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_hostile_bytes_are_an_error_of_that_request_and_the_server_goes_on(triton, protocol):
    def outcome(data):
        try:
            return ask(triton, "stages-pictures", data, ["probabilities"], protocol)
        except InferenceServerException as error:
            return error

    mixed = [data for bad, _ in HOSTILE.values() for data in (bad, PICTURES["webp"])]  # in the same batches
    with ThreadPoolExecutor(len(mixed)) as pool:
        outcomes = list(pool.map(outcome, mixed))
    expected = ask(triton, "stages-pictures", PICTURES["webp"], ["probabilities"])["probabilities"]
    for error, good, (name, (_, words)) in zip(outcomes[::2], outcomes[1::2], HOSTILE.items(), strict=True):
        assert isinstance(error, InferenceServerException), name
        assert error.status() in ("400", "StatusCode.INVALID_ARGUMENT"), (name, error)
        assert re.search(words, error.message()) and "\n" not in error.message(), (name, error)
        assert np.abs(good["probabilities"] - expected).max() < 1e-5
    assert "Stub" not in triton.log.read_text()


def test_mutations_of_pictures_are_answered_or_refused(triton):
    random = np.random.default_rng(0)

    def mutated(seed):
        data = bytearray(list(PICTURES.values())[seed % len(PICTURES)])
        for place in random.integers(0, len(data), 1 + seed % 8):
            data[place] = random.integers(0, 256)
        return bytes(data[: random.integers(len(data) // 2, len(data))] if seed % 3 == 0 else data)

    def status(data):
        try:
            return ask(triton, "stages-pictures", data, ["probabilities"])["probabilities"].shape
        except InferenceServerException as error:
            return error.status()

    pictures = [mutated(seed) for seed in range(120)]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(status, pictures))
    assert set(statuses) == {(4,), "400"}
    assert "Stub" not in triton.log.read_text()


def test_several_pictures_in_a_request_are_refused(triton):
    with tritonclient.http.InferenceServerClient(triton.http_url) as client:
        tensor = tritonclient.http.InferInput("picture", [2, 100], "UINT8")
        tensor.set_data_from_numpy(np.zeros((2, 100), np.uint8))
        with pytest.raises(InferenceServerException, match="one picture a request, not 2"):
            client.infer("cells-pictures", [tensor])


def test_a_plain_http_post_of_the_file_is_a_request(triton):
    """What `curl --data-binary @picture.jpg` sends."""
    url = f"http://{triton.http_url}/v2/models/stages-pictures/infer"
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    with urllib.request.urlopen(urllib.request.Request(url, PICTURES["webp"], headers)) as answer:
        length = int(answer.headers["Inference-Header-Content-Length"])
        probabilities = np.frombuffer(answer.read()[length:], np.float32)
    assert np.abs(probabilities - ask(triton, "stages-pictures", PICTURES["webp"], ["probabilities"])["probabilities"]).max() < 1e-5
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(url, b"no picture", headers))
    assert error.value.code == 400


def outcomes_of(models, folder, monkeypatch, config, code):
    """What 16 clients get of stages-pictures, when words in the configuration and the code of `stages` are replaced."""
    monkeypatch.chdir(folder)
    write_repository({"stages": models["stages"]}, folder / "local", backend="python", settings=PARAMS.publish)
    for path, (old, new) in ((folder / "local/stages/config.pbtxt", config), (folder / "local/stages/1/model.py", code)):
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    with running_triton(folder / "local") as triton, ThreadPoolExecutor(16) as pool:

        def outcome(_):
            try:
                return ask(triton, "stages-pictures", PICTURES["webp"], ["probabilities"])
            except InferenceServerException as error:
                return error

        return list(pool.map(outcome, range(32)))


def test_an_overloaded_model_behind_it_is_unavailable_for_its_caller_too(models, tmp_path, monkeypatch):
    slow = "        images = [", "        import time\n        time.sleep(0.5)\n        images = ["
    outcomes = outcomes_of(models, tmp_path, monkeypatch, ("max_queue_size: 32", "max_queue_size: 1"), slow)
    refused = [each for each in outcomes if isinstance(each, InferenceServerException)]
    assert len(refused) < len(outcomes)
    assert {error.status() for error in refused} <= {"503"}


def test_a_failure_of_the_model_behind_it_is_an_error_of_each_request_of_the_batch(models, tmp_path, monkeypatch):
    failing = "            results = self", "            raise MemoryError('out of memory')\n            results = self"
    outcomes = outcomes_of(models, tmp_path, monkeypatch, ("stages", "stages"), failing)
    assert {(error.status(), error.message()) for error in outcomes} == {("500", "stages: out of memory")}


def test_it_answers_under_the_number_of_a_registered_version(models, tmp_path, monkeypatch):
    """As `dreamteacher fetch-model` numbers the models of a pod."""
    monkeypatch.chdir(tmp_path)
    write_repository({"stages": models["stages"]}, tmp_path / "local", backend="python", settings=PARAMS.publish)
    for model in (tmp_path / "local").glob("*/1"):
        model.rename(model.with_name("7"))
    monkeypatch.setattr("dreamteacher.serving.triton_repository.VERSION", "7")
    with running_triton(tmp_path / "local") as triton:
        assert ask(triton, "stages-pictures", PICTURES["webp"], ["probabilities"])["probabilities"].shape == (4,)


def test_the_model_carries_all_that_it_imports_of_ours(repository):
    folder = repository / "cells-pictures/1"
    copies = {
        path.relative_to(folder / "dreamteacher").as_posix()
        for path in folder.rglob("*.py")
        if path.name not in ("__init__.py", "model.py", "triton_tensors.py")
    }
    assert copies == set(MODULES)
    for module in MODULES:
        assert (folder / "dreamteacher" / module).read_bytes() == (PROJECT / "src/dreamteacher" / module).read_bytes()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dreamteacher"):
                names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "dreamteacher.data" else [node.module]
                missing = {f"{name.removeprefix('dreamteacher.').replace('.', '/')}.py" for name in names} - copies
                assert not missing or missing == {"data/class_list.py"}, path  # which is for type checkers only


def test_an_image_without_pillow_says_so(repository):
    body = FAKE.replace("import model", "sys.modules['PIL'] = None\nimport model")
    done = subprocess.run([sys.executable, "-c", body, str(repository / "cells-pictures/1")], capture_output=True, text=True, check=False)
    assert "NAME-pictures needs Pillow in Triton's Python; install it in the image (pip install pillow)" in done.stderr


FAKE = """
import json, sys, types
sys.path.insert(0, sys.argv[1])
fake = types.ModuleType("triton_python_backend_utils")
sys.modules[fake.__name__] = fake
import model, dreamteacher.serving.contract
ours = [m.__file__ for n, m in sys.modules.items() if n.startswith("dreamteacher")]
print(json.dumps([ours, [n for n in ("torch", "pydantic", "onnx", "tritonclient", "mlflow") if n in sys.modules]]))
"""


def test_the_model_takes_its_own_copies_where_a_dreamteacher_is_installed(repository):
    folder = repository / "cells-pictures/1"
    done = subprocess.run([sys.executable, "-c", FAKE, str(folder)], capture_output=True, text=True, check=True)
    ours, heavy = json.loads(done.stdout)
    assert ours and all(file.startswith(str(folder)) for file in ours)
    assert heavy == []
    assert not list(folder.rglob("__pycache__/decode*"))


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_both_repositories_have_it_unless_the_settings_say_no(models, tmp_path, backend):
    write_repository(models, tmp_path / "with", backend=backend, settings=PARAMS.publish)
    assert check_repository(tmp_path / "with") == ["cells", "cells-backbone", "cells-pictures", "stages", "stages-pictures"]
    assert (tmp_path / "with/stages-pictures/config.pbtxt").read_text().count("embedding") == 0
    settings = Publish(name="cells", pictures=False)
    write_repository(models, tmp_path / "without", backend=backend, settings=settings)
    assert check_repository(tmp_path / "without") == ["cells", "cells-backbone", "stages"]


def test_a_repository_without_the_model_behind_is_refused(models, tmp_path):
    write_repository({"stages": models["stages"]}, tmp_path / "local", backend="python", settings=PARAMS.publish)
    (tmp_path / "local/stages").rename(tmp_path / "away")
    with pytest.raises(UserError, match="it asks the model 'stages', which is not in the repository"):
        check_repository(tmp_path / "local")
