"""Heavy imports of each stage's module, which delay the start of every run; the table is maintained manually."""

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
    "report": {"matplotlib"},
}
# A process for each, forked from one that has imported what several of them want.
LIST = """
import json, os, sys
heavy, groups = map(json.loads, sys.argv[1:])
for modules, stages in groups:
    for module in modules:
        __import__(module)
    for stage in stages:
        if os.fork() == 0:
            __import__(f"dreamteacher.stages.{stage}")
            print(json.dumps([stage, sorted({*heavy} & set(sys.modules))]), flush=True)
            os._exit(0)
        assert os.wait()[1] == 0, stage
"""


def imported(*groups: tuple[set[str], list[str]]) -> dict[str, set[str]]:
    """{stage: heavy modules} of the stages in each group, whose modules are imported before, as are those of the groups before it."""
    words = json.dumps(sorted(HEAVY)), json.dumps([(sorted(modules), stages) for modules, stages in groups])
    done = subprocess.run([sys.executable, "-c", LIST, *words], capture_output=True, text=True, check=True)
    return {stage: set(found) for stage, found in map(json.loads, done.stdout.splitlines())}


def test_each_stage_imports_no_more_than_it_needs():
    light = [stage for stage, wanted in TABLE.items() if "torch" not in wanted]
    heavy = [stage for stage, wanted in TABLE.items() if wanted >= TORCH]
    between = [stage for stage in TABLE if stage not in {*light, *heavy}]
    assert imported((set(), light), ({"torch"}, between), (TORCH, heavy)) == TABLE
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
