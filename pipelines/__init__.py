"""The chains of components on Kubeflow, or on this machine: `python -m pipelines`."""

NAMES = ("pretrain", "retrain")  # modules here, each with `build`
