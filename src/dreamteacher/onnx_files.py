"""The exported ONNX files: names, and reading them without torch."""

from __future__ import annotations

from pathlib import Path

import onnx

from dreamteacher.errors import UserError, first_line

BACKBONE_FILE, MODEL_FILE = "backbone.onnx", "model.onnx"
INPUT, LOGITS = "images", "logits"


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file.

    Raises:
        UserError: the file is missing or no ONNX file.
    """
    return {prop.key: prop.value for prop in load(path).metadata_props}


def load(path: Path) -> onnx.ModelProto:
    """A fresh copy of an ONNX file (`mlflow.onnx` and others change the object they are given).

    Raises:
        UserError: the file is missing or no ONNX file.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; run `dreamteacher export-onnx` first") from error
    except Exception as error:  # protobuf and the checker raise classes of their own
        raise UserError(f"{path} is not a valid ONNX file ({first_line(error)}); export it again") from error
    return model
