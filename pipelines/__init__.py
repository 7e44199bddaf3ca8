"""The Kubeflow pipelines, also run locally: `python -m pipelines`."""

NAMES = ("pretrain", "retrain")  # modules here, each with `build`
