"""An ONNX file as a version of a registered MLflow model."""

from __future__ import annotations

import hashlib
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from dreamteacher.lifecycle.promotion import CHALLENGER
from dreamteacher.onnx_files import load
from dreamteacher.tracking import Tracker

if TYPE_CHECKING:
    from mlflow.types import Schema


def register(tracker: Tracker, file: Path, name: str, *, tags: dict[str, str], description: str, about: str, scratch: Path) -> None:
    """Hand `file` to `tracker` as a version of `name` with alias `challenger`, tags `tags` and `sha256` (of the file).

    `description` is the version's, `about` the registered model's; both are Markdown. A file that is registered already gets the alias,
    the tags and the description, and no second version. When the server is down the tracker keeps
    the model until `dreamteacher sync`. `scratch` is an empty or missing folder that may be written; its name becomes that of the
    model's artifact.

    Raises:
        UserError: `file` is not an ONNX file.
    """
    import mlflow.onnx
    from mlflow.models import ModelSignature

    model = load(file)
    shutil.rmtree(scratch, ignore_errors=True)
    mlflow.onnx.save_model(
        model,
        scratch,
        signature=ModelSignature(_schema(model.graph.input), _schema(model.graph.output)),
        pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "numpy", "onnx", "onnxruntime")],
        save_as_external_data=False,  # MLflow's default writes two files and empties the object, which a second save stores as a model
    )
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    tracker.register(scratch, name, alias=CHALLENGER, tags=tags | {"sha256": sha256}, description=description, about=about)


def _schema(values: list[onnx.ValueInfoProto]) -> Schema:
    from mlflow.types import ColSpec, Schema, TensorSpec

    specs: list[ColSpec | TensorSpec] = []
    for value in values:
        tensor = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
        specs.append(TensorSpec(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), tuple(dims), value.name))
    return Schema(specs)
