"""DreamTeacher: from unlabelled pictures and a few labels to a pretrained, fine-tuned and served image backbone.

`dreamteacher.load(folder)` opens a fine-tuned model (a torch module with its classes and preprocessing).
"""

import os
from typing import Any

# No telemetry; to enable a library's telemetry, set its variable.
for _name, _value in {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_DISABLE_TELEMETRY": "1", "DVC_NO_ANALYTICS": "1"}.items():
    os.environ.setdefault(_name, _value)
# OpenMP reads this when torch is imported. Otherwise its threads spin while they wait for each other, and any other load on the machine
# makes training about ten times slower (resnet18, two threads on two busy cores: 2 instead of 27 pictures/s).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def __getattr__(name: str) -> Any:
    """`load` on first use, because torch takes seconds to import."""
    if name == "load":
        from dreamteacher.tasks.model import load_task_model

        return load_task_model
    raise AttributeError(f"module 'dreamteacher' has no attribute {name!r}")
