"""DreamTeacher: unlabelled pictures and a few labels in, a pretrained, fine-tuned, served image backbone out.

`dreamteacher.load(folder)` opens a fine-tuned model (a torch module with its classes and preprocessing).
"""

import os
from typing import Any

# Nothing here reports home; who wants a library's telemetry sets its variable themselves.
for _name, _value in {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_DISABLE_TELEMETRY": "1", "DVC_NO_ANALYTICS": "1"}.items():
    os.environ.setdefault(_name, _value)
# OpenMP reads this when torch is imported. Its threads otherwise spin while they wait for each other, and any other load on the machine
# then makes training about ten times slower (resnet18, two threads on two busy cores: 2 instead of 27 pictures/s).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def __getattr__(name: str) -> Any:
    """`load` on first use, because torch takes seconds to import."""
    if name == "load":
        from dreamteacher.tasks.model import load_task_model

        return load_task_model
    raise AttributeError(f"module 'dreamteacher' has no attribute {name!r}")
