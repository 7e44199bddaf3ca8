import json
import shutil
import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from serving_samples import COUNTS, make_finetuned, make_model
from torch import nn
from torch.nn import functional as F

from data_sets import write_masks_set
from dreamteacher.errors import UserError
from dreamteacher.onnx_files import load, read_metadata
from dreamteacher.serving.export import check_parity, export
from dreamteacher.settings.downstream import Export
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage, read_stage
from dreamteacher.stages import export_onnx
from dreamteacher.students.backbone import create_backbone
from dreamteacher.tasks.model import TaskModel, load_task_model


def run_onnx(path, images):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"images": images})


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_exported_model_answers_as_torch_at_sizes_and_batches_the_parity_check_never_saw(project, task):
    model = load_task_model(project / "finetuned" / task)
    for shape in [(4, 3, 32, 32), (1, 3, 96, 32), (7, 3, 64, 160)]:
        images = torch.randn(shape)
        (logits,) = run_onnx(project / "onnx" / task / "model.onnx", images.numpy())
        with torch.no_grad():
            expected = model(images).numpy()
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() < 1e-4


def test_exported_backbone_gives_the_pyramid_and_its_pooled_last_level(project):
    backbone = load_task_model(project / "finetuned" / "segmentation").backbone
    path = project / "onnx" / "segmentation" / "backbone.onnx"
    images = torch.randn(2, 3, 64, 32)
    outputs = dict(zip([o.name for o in onnx.load(path).graph.output], run_onnx(path, images.numpy()), strict=True))
    assert list(outputs) == ["stride4", "stride8", "stride16", "stride32", "embedding"]
    with torch.no_grad():
        for (name, array), level in zip(outputs.items(), backbone(images), strict=False):
            assert array.shape[2:] == (64 // int(name[6:]), 32 // int(name[6:]))
            assert np.abs(array - level.numpy()).max() < 1e-4
    assert np.abs(outputs["embedding"] - outputs["stride32"].mean((2, 3))).max() < 1e-5


@pytest.mark.parametrize("opset", [17, 18])
def test_file_stays_within_what_triton_images_load(here, project, opset):
    params = Params(export=Export(size=32, opset=opset))
    export_onnx.run(params, data=project / "data", finetuned=project / "finetuned" / "segmentation", out=here / "onnx")
    for name in ("model.onnx", "backbone.onnx"):
        model = onnx.load(here / "onnx" / name)
        assert {(o.domain, o.version) for o in model.opset_import} == {("", opset)}
        assert model.ir_version <= 10
        assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_output_is_one_file_a_model_without_paths_of_this_machine(project):
    folder = project / "onnx" / "segmentation"
    assert sorted(path.name for path in folder.iterdir()) == ["backbone.onnx", "model.onnx", "stage.json"]
    for name in ("backbone.onnx", "model.onnx"):
        data = (folder / name).read_bytes()
        assert len(data) > 300_000  # the weights are inside
        assert str(project).encode() not in data and b"site-packages" not in data


def test_same_model_gives_the_same_bytes(here, project):
    record = read_stage(project / "onnx" / "segmentation")
    params = Params(export=Export(size=32))
    export_onnx.run(params, data=project / "data", finetuned=project / "finetuned" / "segmentation", out=here / "onnx")
    assert read_stage(here / "onnx")["files"] == record["files"]


def test_classification_tells_the_side_at_which_it_is_evaluated(project):
    for task, side in (("segmentation", None), ("classification", load_task_model(project / "finetuned" / "classification").size)):
        for file in ("model.onnx", "backbone.onnx"):
            assert json.loads(read_metadata(project / "onnx" / task / file)["scale_to"]) == side


def test_metadata_says_how_a_picture_is_prepared(project):
    model = load_task_model(project / "finetuned" / "segmentation")
    told = read_metadata(project / "onnx" / "segmentation" / "model.onnx")
    assert json.loads(told["mean"]) == model.mean and json.loads(told["std"]) == model.std
    assert json.loads(told["classes"]) == ["background", "cell", "debris"]
    assert json.loads(told["strides"]) == [4, 8, 16, 32]
    assert json.loads(told["short_side"]) == 48 and json.loads(told["size"]) == 32
    assert (told["layout"], told["channel_order"], told["task"]) == ("NCHW", "RGB", "segmentation")
    assert (told["data_hash"], told["init"], told["dynamic_size"]) == ("d" * 64, "mix", "true")
    assert read_metadata(project / "onnx" / "segmentation" / "backbone.onnx")["task"] == "features"


def test_stage_reports_parity_and_size(project):
    metrics = read_stage(project / "onnx" / "segmentation")["metrics"]
    size = sum(p.stat().st_size for p in (project / "onnx" / "segmentation").glob("*.onnx")) / 1e6
    assert 0 < metrics["parity_max"] < 1e-4
    assert metrics["onnx_mb"] == pytest.approx(size)
    assert metrics["dynamic_size"] == 1


def test_altered_weights_fail_the_parity_check(project, tmp_path):
    model = onnx.load(project / "onnx" / "segmentation" / "model.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    altered = onnx.numpy_helper.to_array(weight).copy()
    altered.flat[0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(altered, weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    torch_model = load_task_model(project / "finetuned" / "segmentation")
    with pytest.raises(UserError, match=r"model\.onnx: output logits for 1 x 3 x 32 x 32 differs from torch by .* export\.tolerance"):
        check_parity(tmp_path / "model.onnx", torch_model, sizes=[(32, 32)], tolerance=1e-4)


class Wrong(TaskModel):
    """Computes something else while it is traced, as a module with a branch on its input may."""

    def forward(self, normalized):
        logits = super().forward(normalized)
        return logits * 1.01 if torch.jit.is_tracing() else logits


def test_export_that_differs_from_torch_fails_the_stage_and_leaves_nothing(here, project, monkeypatch):
    shutil.copytree(project / "finetuned" / "segmentation", here / "finetuned")
    good = load_task_model(here / "finetuned")
    wrong = Wrong(good.backbone, good.task, good.classes, good.size, good.width).eval()
    wrong.load_state_dict(good.state_dict())
    monkeypatch.setattr(export_onnx, "load_task_model", lambda folder: wrong)
    with pytest.raises(UserError, match=r"model\.onnx: output logits .* differs from torch"):
        export_onnx.run(Params(export=Export(size=32)), data=project / "data", finetuned=here / "finetuned", out=here / "onnx")
    assert not (here / "onnx").exists()
    assert not list(here.rglob("*.onnx"))


def test_nan_is_no_parity(tmp_path):
    class Broken(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)) * float("nan")

    with pytest.raises(UserError, match="differs from torch by nan"):
        export(Broken(), tmp_path / "model.onnx", ["logits"], size=32, opset=18, tolerance=1e-4, metadata={})
    assert not list(tmp_path.iterdir())


class OneSize(nn.Module):
    """Bakes the size of its input into the trace, as models with a learned position grid do."""

    def __init__(self):
        super().__init__()
        self.grid = nn.Parameter(torch.randn(1, 3, 32, 32))

    def forward(self, images):
        return F.avg_pool2d(images + self.grid, 4)


def test_model_of_one_size_is_exported_for_that_size_and_says_so(tmp_path):
    path = tmp_path / "model.onnx"
    done = export(OneSize(), path, ["logits"], size=32, opset=18, tolerance=1e-4, metadata={"size": "32"})
    assert done.fixed_because and done.parity <= 1e-4
    assert read_metadata(path)["dynamic_size"] == "false"
    assert [d.dim_param or d.dim_value for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim] == ["N", 3, 32, 32]
    assert run_onnx(path, np.zeros((6, 3, 32, 32), np.float32))[0].shape == (6, 3, 8, 8)


@pytest.mark.parametrize("full", ["torch.onnx.export", "dreamteacher.serving.export.check_parity"])
def test_a_full_disk_is_no_fault_of_the_model_and_no_reason_for_one_size(full, tmp_path, monkeypatch):
    def out_of_space(*_, **__):
        raise RuntimeError("[Errno 28] No space left on device")

    monkeypatch.setattr(full, out_of_space)
    with pytest.raises(RuntimeError, match="No space left"):
        export(OneSize(), tmp_path / "model.onnx", ["logits"], size=32, opset=18, tolerance=1e-4, metadata={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_b0"])
def test_common_backbones_take_any_size(tmp_path, name):
    torch.manual_seed(0)
    model = TaskModel(create_backbone(name), "segmentation", ["a", "b"], 32, 8)
    done = export(model, tmp_path / "model.onnx", ["logits"], size=32, opset=17, tolerance=1e-4, metadata={})
    assert done.fixed_because is None


def test_damaged_and_missing_files_are_named(tmp_path, project):
    with pytest.raises(UserError, match="run `dreamteacher export-onnx`"):
        load(tmp_path / "model.onnx")
    data = (project / "onnx" / "segmentation" / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a valid ONNX file"):
        load(tmp_path / "model.onnx")


def test_revision_names_the_commit_and_whether_tracked_files_differ_from_it(in_tmp):
    assert export_onnx.git_revision() == ""

    def git(*command):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *who, *command], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    for name in ("code.py", "dvc.lock"):
        (in_tmp / name).write_text("1")
    git("add", ".")
    assert export_onnx.git_revision() == "", "there is no commit yet"
    git("commit", "-q", "-m", "one")
    (in_tmp / "dvc.lock").write_text("2")  # what `dvc repro` has just written says nothing about the code
    assert export_onnx.git_revision() == git("rev-parse", "HEAD")
    (in_tmp / "code.py").write_text("2")
    assert export_onnx.git_revision() == git("rev-parse", "HEAD") + "-dirty"


def test_fp16_is_held_against_fp32_on_validation_pictures(here):
    """With logits beyond float16's range nothing can be decided; the file of a model that passes says that it may be served so."""
    pictures = [(np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)) for i in range(3)]
    data = write_masks_set(here / "pictures", ["background", "cell", "debris"], pictures)
    with open_stage("ingest", params={"ingest": {"short_side": None}}, inputs={}, out=here / "data") as stage:
        shutil.copytree(data, stage.tmp, dirs_exist_ok=True)
        facts = json.loads((data / "dataset.json").read_text()) | {"hash": "d" * 64, "counts": COUNTS}
        (stage.tmp / "dataset.json").write_text(json.dumps(facts))
    model = make_model("segmentation")
    params = Params(export=Export(size=32, precision="fp16", agreement=0.9))
    metrics = export_onnx.run(params, data=here / "data", finetuned=make_finetuned(here / "model", model), out=here / "onnx")
    assert 0.9 < metrics["fp16_agreement"] <= 1
    assert read_metadata(here / "onnx" / "model.onnx")["precision"] == "fp16"
    with torch.no_grad():
        list(model.head.parameters())[-1].add_(1e5)  # the bias of each class alike: the same decisions in float32
    with pytest.raises(UserError, match=r"fp16 leaves only 0\.00% of the model's decisions .* set export\.precision to fp32"):
        export_onnx.run(params, data=here / "data", finetuned=make_finetuned(here / "large", model), out=here / "onnx2")
    assert not (here / "onnx2").exists()
