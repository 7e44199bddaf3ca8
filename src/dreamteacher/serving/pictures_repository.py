"""The model NAME-pictures of a Triton repository, which takes picture files, preprocesses them and calls NAME."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from dreamteacher.serving.answers import ANSWERS
from dreamteacher.serving.contract import Contract
from dreamteacher.settings.downstream import Publish

SUFFIX = "-pictures"
SOURCE = Path(__file__).parents[1]
MODULES = (  # all of our modules that triton_pictures.py imports, so that the server's Python does not need dreamteacher
    "errors.py",
    "data/boxes.py",
    "data/decode.py",
    "data/deep.py",
    "data/formats.py",
    "data/instances.py",
    "data/items.py",
    "data/keypoints.py",
    "data/load.py",
    "data/metadata.py",
    "data/tiff.py",
    "data/tiff_tags.py",
    "serving/answers.py",
    "serving/contract.py",
    "serving/sampling.py",
)

Tensors = dict[str, tuple[int, list[int]]]  # name -> (Triton's data type, dims without the batch)


def write_pictures(folder: Path, version: str, config: ModelConfig) -> None:
    """Write the model of `config` (see `pictures_config`) to `folder`: its code and copies of MODULES."""
    place = folder / version
    for module in MODULES:
        copy = place / "dreamteacher" / module
        copy.parent.mkdir(parents=True, exist_ok=True)
        (copy.parent / "__init__.py").write_text('"""Part of a copy that `dreamteacher publish` made."""\n')  # some stores lose empty files
        shutil.copyfile(SOURCE / module, copy)
    copy_code("triton_pictures.py", place)


def copy_code(module: str, place: Path) -> None:
    """Copy a module of this package for Triton's python backend into a version's folder as its model.py, with what it reads tensors by."""
    shutil.copyfile(SOURCE / "serving" / module, place / "model.py")
    shutil.copyfile(SOURCE / "serving/triton_tensors.py", place / "triton_tensors.py")


def pictures_config(name: str, contract: Contract, embedding: int | None, settings: Publish) -> ModelConfig:
    """The configuration of `name`-pictures.

    embedding: channels of the embedding of `name`-backbone; None where that model is not served.
    """
    config = ModelConfig(name=name + SUFFIX, backend="python", max_batch_size=settings.max_batch_size)
    # Files of different lengths are batched too, so that they share requests to NAME.
    for tensor, (data_type, dims) in inputs().items():
        config.input.add(name=tensor, data_type=data_type, dims=dims, allow_ragged_batch=True)
    for tensor, (data_type, dims) in outputs(contract, embedding).items():
        config.output.add(name=tensor, data_type=data_type, dims=dims)
    limits = {"max_pixels": str(settings.max_pixels), "max_request_pixels": str(settings.max_request_pixels)}
    facts = contract.to_metadata() | {"model": name} | limits
    for key, text in (facts | ({} if embedding is None else {"backbone": f"{name}-backbone"})).items():
        config.parameters[key].string_value = text
    # Twice those of `name`: while one waits for its answer, another prepares the next picture.
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=2 * settings.instances)
    return config


def inputs() -> Tensors:
    """The model's inputs."""
    return {"picture": (_type("TYPE_UINT8"), [-1])}


def outputs(contract: Contract, embedding: int | None) -> Tensors:
    """The model's outputs."""
    answers = {name: (_type(kind), sizes) for name, (kind, sizes) in ANSWERS[contract.task].tensors(len(contract.classes)).items()}
    return answers | ({} if embedding is None else {"embedding": (_type("TYPE_FP32"), [embedding])})


def _type(name: str) -> Any:
    return DataType.Value(name)
