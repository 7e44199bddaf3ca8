"""Triton model repositories, written from the ONNX files themselves and checked against them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import onnx
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelDynamicBatching, ModelInstanceGroup, ModelQueuePolicy

from dreamteacher.errors import UserError
from dreamteacher.onnx_files import LOGITS, load
from dreamteacher.serving.answers import ANSWERS
from dreamteacher.serving.contract import Contract
from dreamteacher.serving.pictures_repository import SUFFIX, Tensors, copy_code, pictures_config, write_pictures
from dreamteacher.serving.pictures_repository import inputs as pictures_inputs
from dreamteacher.serving.pictures_repository import outputs as pictures_outputs
from dreamteacher.settings.downstream import Publish

Backend = Literal["onnxruntime", "python"]

VERSION = "1"
LABELS = "labels.txt"
JOINED_ON_CPU = 4  # with 1, and one instance, Triton 24.10 pauses
QUEUE_OF_CPU = 16  # queued requests per instance: about a second's work
ENGINES = "/engines"  # TensorRT's engine cache on GPU servers; k8s/components/gpu mounts a volume there
TYPES: dict[int, Any] = {
    onnx.TensorProto.FLOAT: DataType.TYPE_FP32,
    onnx.TensorProto.FLOAT16: DataType.TYPE_FP16,
    onnx.TensorProto.INT64: DataType.TYPE_INT64,
}


def write_repository(models: dict[str, Path], out: Path, *, backend: Backend, settings: Publish) -> list[str]:
    """Write NAME/config.pbtxt, NAME/1/model.onnx and (for a model with classes) NAME/labels.txt for every NAME: ONNX file.

    backend: "onnxruntime" for Triton's own images; "python" for the tritonserver of the nvidia-pytriton wheel, which has that
    backend only: NAME/1/model.py then runs the file, on CPU. Each instance has publish.threads threads in both.
    Triton's model parameters contain the file's metadata, so that clients get the preprocessing contract from the server.
    With publish.pictures each built-in task also gets a NAME-pictures, which takes the bytes of picture files, runs on the python backend
    in both kinds of repository, and returns the embedding if NAME-backbone is in `models`.

    Returns the names of all models that were written.

    Raises:
        UserError: an ONNX file is missing, damaged or of more than one file, or Triton cannot serve it.
    """
    for name, path in models.items():
        model = load(path)
        contract = Contract.from_metadata({prop.key: prop.value for prop in model.metadata_props}, str(path))
        config = _config(name, model, contract, backend, settings)
        folder = out / name
        (folder / VERSION).mkdir(parents=True)
        shutil.copyfile(path, folder / VERSION / "model.onnx")
        _write_config(folder, config, contract)
        if backend == "python":
            copy_code("triton_model.py", folder / VERSION)
        if settings.pictures and contract.task in ANSWERS:
            backbone = load(models[f"{name}-backbone"]).graph if f"{name}-backbone" in models else None
            config = pictures_config(name, contract, _channels(backbone) if backbone else None, settings)
            _add_batching(config, settings)
            write_pictures(out / config.name, VERSION, config)
            _write_config(out / config.name, config, contract)
    return check_repository(out)


def _write_config(folder: Path, config: ModelConfig, contract: Contract) -> None:
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    if any(output.label_filename for output in config.output):
        (folder / LABELS).write_text("".join(f"{label}\n" for label in contract.classes))


def _channels(backbone: onnx.GraphProto) -> int:
    """Of the embedding that a backbone gives."""
    return next(_tensor(value)[1][0] for value in backbone.output if value.name == "embedding")


def check_repository(repository: Path) -> list[str]:
    """Check a repository and return its model names: each config.pbtxt must be valid for Triton and match its ONNX file (or code).

    Raises:
        UserError: there is no model, or one with an unknown field, a wrong value, or inputs and outputs other than the file's.
    """
    configs = sorted(repository.glob("*/config.pbtxt"))
    if not configs:
        raise UserError(f"{repository} is no Triton model repository (no NAME/config.pbtxt); run `dreamteacher publish` first")
    for path in configs:
        try:
            config = text_format.Parse(path.read_text(), ModelConfig())
        except text_format.ParseError as error:
            raise UserError(f"{path}: {error}; fix it, or write it again with `dreamteacher publish --overwrite`") from error
        whose, inputs, outputs = _tensors(path, config)
        for kind, declared, ours in (("input", config.input, inputs), ("output", config.output, outputs)):
            theirs: Tensors = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in declared}
            if theirs != ours:
                raise UserError(f"{path}: {kind}s {_words(theirs)} are not the {whose}'s {_words(ours)}; publish the model again")
        if config.name != path.parent.name:
            raise UserError(f"{path}: the model is called {config.name!r} but its folder {path.parent.name!r}; they must be the same")
    return [path.parent.name for path in configs]


def _tensors(path: Path, config: ModelConfig) -> tuple[str, Tensors, Tensors]:
    """The model file (or code) of a config.pbtxt, for messages, and its inputs and outputs."""
    file = path.parent / VERSION / "model.onnx"
    if not path.parent.name.endswith(SUFFIX) or file.exists():
        graph = load(file).graph
        return "ONNX file", {v.name: _tensor(v) for v in graph.input}, {v.name: _tensor(v) for v in graph.output}
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    contract = Contract.from_metadata(parameters, str(path))
    for role in ("model", "backbone"):
        if role in parameters and not (path.parents[1] / parameters[role] / "config.pbtxt").exists():
            raise UserError(f"{path}: it asks the model {parameters[role]!r}, which is not in the repository; publish the model again")
    file = path.parents[1] / parameters.get("backbone", "") / VERSION / "model.onnx"
    return "model", pictures_inputs(), pictures_outputs(contract, _channels(load(file).graph) if "backbone" in parameters else None)


def _config(name: str, model: onnx.ModelProto, contract: Contract, backend: Backend, settings: Publish) -> ModelConfig:
    config = ModelConfig(name=name, backend=backend, max_batch_size=settings.max_batch_size)
    for value in model.graph.input:
        data_type, dims = _tensor(value)
        config.input.add(name=value.name, data_type=data_type, dims=dims)
    for value in model.graph.output:
        data_type, dims = _tensor(value)
        config.output.add(name=value.name, data_type=data_type, dims=dims, label_filename=LABELS if value.name == LOGITS else "")
    for prop in model.metadata_props:
        config.parameters[prop.key].string_value = prop.value
    for key, text in contract.to_metadata().items():  # with the contract version, which older files lack
        config.parameters[key].string_value = text
    _add_batching(config, settings)
    if backend == "python":
        config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=settings.instances)
        config.parameters["intra_op_num_threads"].string_value = str(settings.threads)
        config.parameters["max_request_pixels"].string_value = str(settings.max_request_pixels)
        return config
    kind = ModelInstanceGroup.KIND_GPU if settings.gpu else ModelInstanceGroup.KIND_CPU
    config.instance_group.add(kind=kind, count=settings.instances)
    # Options of Triton's onnxruntime backend. Without them each instance has a thread per core of the node, on GPU as well.
    config.parameters["intra_op_thread_count"].string_value = str(settings.threads)
    config.parameters["inter_op_thread_count"].string_value = "1"
    batches = {"largest batch": settings.max_batch_size}
    if settings.gpu and {prop.key: prop.value for prop in model.metadata_props}.get("precision") == "fp16":
        tensorrt = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
        tensorrt.parameters.update({"precision_mode": "FP16", "trt_engine_cache_enable": "1", "trt_engine_cache_path": ENGINES})
        batches["one picture"] = 1  # engines are compiled for the range of shapes seen so far
    # The largest batch allocates all memory before the first request and lets a GPU select its kernels. The python backend warms
    # itself up: this Triton crashes without a word when a warm-up fails there.
    for words, batch_size in batches.items():
        warm_up = config.model_warmup.add(name=words, batch_size=batch_size)
        for tensor in config.input:
            warm_up.inputs[tensor.name].data_type = tensor.data_type
            warm_up.inputs[tensor.name].dims.extend(contract.size if length == -1 else length for length in tensor.dims)
            warm_up.inputs[tensor.name].random_data = True
    return config


def _add_batching(config: ModelConfig, settings: Publish) -> None:
    """The dynamic batcher and the queue limit.

    There is no queue timeout: with one, Triton 24.10 passes requests to a free instance only when the next request arrives, or half a
    second later. It also does so after a refusal, which a queue that lasts for half a second hides.
    """
    largest = settings.max_batch_size
    joined = min(largest, settings.preferred_batch_size or (largest if settings.gpu else JOINED_ON_CPU))
    preferred = [joined] if settings.queue_delay_us else range(1, joined + 1) if joined < largest else []  # []: any, at once
    an_instance = 2 * largest if settings.gpu else QUEUE_OF_CPU
    config.version_policy.latest.num_versions = 1
    config.dynamic_batching.CopyFrom(
        ModelDynamicBatching(
            preferred_batch_size=preferred,
            max_queue_delay_microseconds=settings.queue_delay_us,
            default_queue_policy=ModelQueuePolicy(max_queue_size=settings.max_queue or an_instance * settings.instances),
        )
    )


def _tensor(value: onnx.ValueInfoProto) -> tuple[int, list[int]]:
    """Triton's data type and dims (-1: free; without the batch, which must be free) of an input or output of a graph."""
    tensor = value.type.tensor_type
    batch, *dims = tensor.shape.dim
    if tensor.elem_type not in TYPES or batch.HasField("dim_value"):
        raise UserError(f"{value.name} of the ONNX file has a type or a fixed batch size that cannot be served; export it again")
    return TYPES[tensor.elem_type], [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]


def _words(tensors: Tensors) -> str:
    return ", ".join(f"{name} {DataType.Name(kind)} {dims}" for name, (kind, dims) in tensors.items())
