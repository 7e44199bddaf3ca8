"""What the module of each stage imports: seconds of every run before its first line, so the table is kept by hand."""

import json
import subprocess
import sys

from dreamteacher.cli import STAGES

TORCH = {"torch", "accelerate", "boto3"}
HEAVY = TORCH | {"diffusers", "timm", "torchvision", "torchmetrics", "scipy", "matplotlib", "pandas", "mlflow", "webdataset", "onnx",
                 "onnxruntime", "tritonclient", "torch._dynamo", "dvc"}  # fmt: skip
TABLE = {
    "ingest": set(),
    "find_commit": set(),
    "fetch_data": set(),
    "publish": {"onnx", "tritonclient"},
    "gate": {"onnx", "onnxruntime"},
    "promote": {"onnx", "onnxruntime", "tritonclient"},
    "finetune": TORCH,
    "compare_data": TORCH,
    "export_onnx": {"torch", "onnx", "onnxruntime"},
    "train_teacher": TORCH,
    "train_interpreter": TORCH,
    "distill_features": TORCH,
    "distill_labels": TORCH,
    "evaluate": TORCH | {"matplotlib"},
    "record": TORCH | {"matplotlib"},
}
# A process for each, forked from one that has torch where they all want it.
LIST = """
import json, os, sys
heavy, (stages, with_torch) = set(json.loads(sys.argv[1])), json.loads(sys.argv[2])
if with_torch:
    import torch
for stage in stages:
    if os.fork() == 0:
        __import__(f"dreamteacher.stages.{stage}")
        print(json.dumps([stage, sorted(heavy & set(sys.modules))]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, stage
"""


def imported(stages: list[str], *, with_torch: bool) -> dict[str, set[str]]:
    command = [sys.executable, "-c", LIST, json.dumps(sorted(HEAVY)), json.dumps([stages, with_torch])]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {stage: set(found) for stage, found in map(json.loads, lines)}


def test_each_stage_imports_no_more_than_it_needs():
    light = [stage for stage, wanted in TABLE.items() if "torch" not in wanted]
    heavy = [stage for stage in TABLE if stage not in light]
    assert imported(light, with_torch=False) | imported(heavy, with_torch=True) == TABLE
    assert {stage.replace("-", "_") for stage in STAGES} <= set(TABLE)


def test_what_runs_in_the_serving_image_needs_no_torch():
    """docker/serving.Dockerfile installs neither it nor the other packages that training needs."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import dreamteacher.cli, dreamteacher.lifecycle.last_run, dreamteacher.serving.delivery, dreamteacher.serving.deployment
import dreamteacher.serving.webhook
"""
    missing = ["torch", "torchvision", "timm", "diffusers", "onnxruntime", "onnxscript", "matplotlib", "dvc", "kfp", "pandas", "scipy"]
    subprocess.run([sys.executable, "-c", code, *missing], check=True)
