"""DreamTeacher: unlabelled pictures and a few labels in, a pretrained, fine-tuned, served image backbone out.

`dreamteacher.load(folder)` opens a fine-tuned model (a torch module with its classes and preprocessing).
"""

import os
from typing import Any

# Nothing here reports home; who wants a library's telemetry sets its variable themselves.
for _name, _value in {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_DISABLE_TELEMETRY": "1", "DVC_NO_ANALYTICS": "1"}.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> Any:
    """`load` on first use, because torch takes seconds to import."""
    if name == "load":
        from dreamteacher.tasks.model import load_task_model

        return load_task_model
    raise AttributeError(f"module 'dreamteacher' has no attribute {name!r}")
