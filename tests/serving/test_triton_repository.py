import json
from itertools import product

import onnx
import pytest
from google.protobuf import text_format
from serving_samples import PARAMS
from tritonclient.grpc import model_config_pb2

from dreamteacher.errors import UserError
from dreamteacher.serving.triton_repository import check_repository, write_repository
from dreamteacher.settings.downstream import Publish


def read_config(folder):
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.fixture(scope="module")
def production(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("production") / "repository"
    write_repository(models, folder, backend="onnxruntime", settings=PARAMS.publish)
    return folder


@pytest.mark.parametrize("kind", ["production", "local"])
def test_configs_name_what_the_onnx_files_take_and_give(models, production, repository, kind):
    folder = {"production": production, "local": repository}[kind]
    assert check_repository(folder) == ["cells", "cells-backbone", "cells-pictures", "stages", "stages-pictures"]
    for name, path in models.items():
        graph, config = onnx.load(path).graph, read_config(folder / name)
        for declared, values in ((config.input, graph.input), (config.output, graph.output)):
            assert [tensor.name for tensor in declared] == [value.name for value in values]
            for tensor, value in zip(declared, values, strict=True):
                batch, *dims = value.type.tensor_type.shape.dim
                assert batch.dim_param == "N"
                assert list(tensor.dims) == [dim.dim_value or -1 for dim in dims]
                assert tensor.data_type == model_config_pb2.TYPE_FP32
        assert (folder / name / "1" / "model.onnx").read_bytes() == path.read_bytes()
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        metadata = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
        assert parameters.items() >= metadata.items()


def test_segmentation_has_its_classes_and_free_picture_size(production):
    config = read_config(production / "cells")
    assert list(config.input[0].dims) == [3, -1, -1] and list(config.output[0].dims) == [3, -1, -1]
    assert config.output[0].label_filename == "labels.txt"
    assert (production / "cells" / "labels.txt").read_text() == "background\ncell\ndebris\n"
    assert not (production / "cells-backbone" / "labels.txt").exists()


def test_production_batches_warms_up_and_sheds_load(production):
    config = read_config(production / "cells")
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 32)
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    policy = config.dynamic_batching.default_queue_policy
    assert policy.max_queue_size == 32 and not policy.default_timeout_microseconds
    assert config.model_warmup[0].batch_size == 32
    assert list(config.model_warmup[0].inputs["images"].dims) == [3, 32, 32]
    assert [(group.kind, group.count) for group in config.instance_group] == [(model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)]
    assert config.version_policy.latest.num_versions == 1
    assert not (production / "cells" / "1" / "model.py").exists()


@pytest.mark.parametrize(("backend", "key"), [("onnxruntime", "intra_op_thread_count"), ("python", "intra_op_num_threads")])
@pytest.mark.parametrize("gpu", [False, True])
def test_instances_have_as_many_threads_as_the_settings_say_and_not_the_nodes_cores(models, tmp_path, backend, key, gpu):
    for threads in (1, 3):
        settings = Publish(name="cells", threads=threads, instances=4, gpu=gpu)
        write_repository({"cells": models["cells"]}, tmp_path / str(threads), backend=backend, settings=settings)
        config = read_config(tmp_path / str(threads) / "cells")
        assert config.parameters[key].string_value == str(threads)
        assert [group.count for group in config.instance_group] == [4]
        if backend == "onnxruntime":
            assert config.parameters["inter_op_thread_count"].string_value == "1"
    assert Publish().threads == 1


@pytest.mark.parametrize(
    ("settings", "preferred", "queue"),
    [
        ({}, [1, 2, 3, 4], 32),
        ({"instances": 3}, [1, 2, 3, 4], 48),
        ({"gpu": True}, [], 256),
        ({"gpu": True, "queue_delay_us": 500}, [64], 256),
        ({"gpu": True, "instances": 1, "max_batch_size": 8}, [], 16),
        ({"max_queue": 5, "preferred_batch_size": 2}, [1, 2], 5),
        ({"preferred_batch_size": 16, "max_batch_size": 8, "queue_delay_us": 10}, [8], 32),
    ],
)
def test_requests_are_joined_and_may_wait_as_the_settings_say(models, tmp_path, settings, preferred, queue):
    write_repository({"stages": models["stages"]}, tmp_path, backend="onnxruntime", settings=Publish(name="stages", **settings))
    for name in ("stages", "stages-pictures"):
        batching = read_config(tmp_path / name).dynamic_batching
        assert list(batching.preferred_batch_size) == preferred
        assert batching.max_queue_delay_microseconds == settings.get("queue_delay_us", 0)
        assert batching.default_queue_policy.max_queue_size == queue


def test_gpu_is_for_production_only(models, tmp_path):
    settings = Publish(name="cells", gpu=True, instances=1)
    for backend, kind in (("onnxruntime", "KIND_GPU"), ("python", "KIND_CPU")):
        write_repository({"cells": models["cells"]}, tmp_path / backend, backend=backend, settings=settings)
        group = read_config(tmp_path / backend / "cells").instance_group[0]
        assert model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) == kind


def test_tensorrt_runs_what_may_be_served_in_fp16_where_there_is_a_gpu(models, tmp_path):
    half = onnx.load(models["cells"])
    onnx.helper.set_model_props(half, {prop.key: prop.value for prop in half.metadata_props} | {"precision": "fp16"})
    onnx.save(half, tmp_path / "half.onnx")
    for number, (file, gpu, backend) in enumerate(
        product((models["cells"], tmp_path / "half.onnx"), (False, True), ("onnxruntime", "python"))
    ):
        settings = Publish(name="cells", gpu=gpu, pictures=False)
        write_repository({"cells": file}, tmp_path / str(number), backend=backend, settings=settings)
        config = read_config(tmp_path / str(number) / "cells")
        accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert [found.name for found in accelerators] == (
            ["tensorrt"] if (file.name, gpu, backend) == ("half.onnx", True, "onnxruntime") else []
        )
        if accelerators:
            assert accelerators[0].parameters["precision_mode"] == "FP16"
            assert accelerators[0].parameters["trt_engine_cache_path"] == "/engines"
            assert {warm_up.batch_size for warm_up in config.model_warmup} == {1, 64}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_batch_size:", "max_batch_sizes:", 'no field named "max_batch_sizes"'),
        ("KIND_CPU", "KIND_TPU", "KIND_TPU"),
        ("dims: -1", "dims: 7", "are not the ONNX file's"),
        ('name: "logits"', 'name: "masks"', "are not the ONNX file's"),
        ("TYPE_FP32", "TYPE_FP16", "are not the ONNX file's"),
        ('name: "cells"', 'name: "other"', "must be the same"),
    ],
)
def test_broken_config_is_caught(models, tmp_path, old, new, message):
    write_repository({"cells": models["cells"]}, tmp_path, backend="python", settings=PARAMS.publish)
    path = tmp_path / "cells" / "config.pbtxt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        check_repository(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_folder_without_models_is_no_repository(tmp_path):
    with pytest.raises(UserError, match="run `dreamteacher publish`"):
        check_repository(tmp_path)


def test_same_files_give_the_same_repository(models, repository, tmp_path):
    write_repository(models, tmp_path / "again", backend="python", settings=PARAMS.publish)
    files = sorted(path.relative_to(repository) for path in repository.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert files == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file())
    assert all((repository / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    assert json.loads(read_config(repository / "stages").parameters["classes"].string_value) == ["early", "middle", "late", "done"]
