import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from dreamteacher.data.formats import BadPicture
from dreamteacher.errors import UserError
from dreamteacher.onnx_files import read_metadata
from dreamteacher.serving.contract import DESCRIPTION, VERSION, VERSION_KEY, Contract, check_size, prepare, to_mask
from dreamteacher.tasks.segmentation import resized_argmax

CONTRACT = Contract(
    task="segmentation",
    classes=("a", "b"),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    size=32,
    multiple=32,
    short_side=None,
    scale_to=None,
    interpolation="bilinear",
    strides=(4, 8),
)


def test_texts_are_read_back_as_they_were():
    for contract in (CONTRACT, replace(CONTRACT, task="features", short_side=256, scale_to=64, dynamic_size=False, classes=())):
        assert Contract.from_metadata(contract.to_metadata(), "x") == contract


def test_exported_files_and_the_server_s_configuration_hold_the_same_contract(models, repository):
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    for name, path in models.items():
        config = text_format.Parse((repository / name / "config.pbtxt").read_text(), ModelConfig())
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        assert parameters[VERSION_KEY] == str(VERSION)
        contract = Contract.from_metadata(parameters, name)
        assert contract == Contract.from_metadata(read_metadata(path), name)
        assert contract.short_side == 48 and contract.size == 32


def test_models_from_before_there_were_versions_are_read():
    """The metadata of an export as it was in version 0.1.0 of the package."""
    old = {
        "classes": '["background", "cell"]', "strides": "[4, 8, 16, 32]", "architecture": "resnet18", "layout": "NCHW",
        "channel_order": "RGB", "value_range": "[0, 1], then (value - mean) / std per channel", "mean": "[0.485, 0.456, 0.406]",
        "std": "[0.229, 0.224, 0.225]", "size": "128", "multiple": "32", "padding": "reflect, right and bottom", "short_side": "256",
        "scale_to": "null", "interpolation": "bilinear", "task": "segmentation", "dynamic_size": "true",
    }  # fmt: skip
    contract = Contract.from_metadata(old, "old")
    assert contract.to_metadata().items() >= {key: text for key, text in old.items() if key != "architecture"}.items()
    assert (contract.short_side, contract.scale_to, contract.dynamic_size, contract.strides) == (256, None, True, (4, 8, 16, 32))


def test_a_later_version_is_refused_in_one_line_that_says_what_to_do():
    later = CONTRACT.to_metadata() | {VERSION_KEY: str(VERSION + 1), "crop": "center"}
    with pytest.raises(UserError, match=r"model 'x' has version 2 of the preprocessing contract .* update dreamteacher") as error:
        Contract.from_metadata(later, "model 'x'")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "text"),
    [("mean", "[0.5]"), ("std", "[0, 1, 1]"), ("size", "0"), ("size", "x"), ("task", "no task"), ("interpolation", "magic"),
     ("classes", "[1]"), ("short_side", "1.5"), ("dynamic_size", "1"), ("strides", "null")],
)  # fmt: skip
def test_values_that_cannot_be_are_named(key, text):
    with pytest.raises(UserError, match=f"says that '{key}' is .*export and publish it again"):
        Contract.from_metadata(CONTRACT.to_metadata() | {key: text}, "x")
    for name in asdict(CONTRACT).keys() - {"skeleton", "head"}:  # which a contract of other tasks does not hold
        with pytest.raises(UserError, match="serve what `dreamteacher publish` wrote"):
            Contract.from_metadata({k: v for k, v in CONTRACT.to_metadata().items() if k != name}, "x")


def test_a_file_says_what_readers_without_this_module_need():
    metadata = CONTRACT.to_metadata()
    assert metadata.items() >= DESCRIPTION.items()
    assert json.loads(metadata["mean"]) == [0.5, 0.5, 0.5]


def test_model_of_one_size_gets_the_picture_in_that_size():
    tensor, size = prepare(np.full((50, 70, 3), 255, np.uint8), replace(CONTRACT, dynamic_size=False))
    assert tensor.shape == (1, 3, 32, 32) and size == (32, 32)
    assert np.allclose(tensor, 2.0)


@pytest.mark.parametrize(("short_side", "scale_to"), [(None, None), (16, None), (None, 64)])
def test_thin_pictures_cannot_take_all_memory(short_side, scale_to):
    contract = replace(CONTRACT, short_side=short_side, scale_to=scale_to)
    for shape in ((1, 5_000_000, 3), (5_000_000, 1, 3)):
        with pytest.raises(BadPicture, match="too thin or too large"):
            prepare(np.zeros(shape, np.uint8), contract)
    check_size(1000, 1000, contract)
    with pytest.raises(BadPicture, match="more than 1000 pixels"):
        check_size(64, 64, contract, max_pixels=1000)


@pytest.mark.parametrize("size", [(40, 45), (97, 131), (300, 61)])
def test_masks_are_enlarged_as_evaluation_does(size):
    logits = np.random.default_rng(0).normal(size=(5, 64, 64)).astype(np.float32)
    mask = to_mask(logits, (40, 45), size)
    expected = resized_argmax(torch.from_numpy(logits[:, :40, :45]), size).numpy()
    assert mask.dtype == np.uint8 and mask.shape == size
    assert (mask != expected).mean() < 1e-3  # float32 sums in another order


def test_the_contract_needs_numpy_and_pillow_only():
    body = (
        "import sys\nfor name in ('torch', 'mlflow', 'onnx', 'pydantic', 'tritonclient'): sys.modules[name] = None\n"
        "import dreamteacher.serving.contract\n"
        "print(sorted({n.split('.')[0] for n in sys.modules if n.split('.')[0] in ('numpy', 'PIL', 'yaml', 'requests', 'google')}))"
    )
    assert subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=True).stdout == "['PIL', 'numpy']\n"
