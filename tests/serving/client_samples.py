"""Clients of each kind, pictures, and expected answers of the models in `serving_samples`."""

import asyncio

import numpy as np
import torch
from PIL import Image
from serving_samples import make_model

from dreamteacher.data.dataset import Sample
from dreamteacher.data.transforms import full_image
from dreamteacher.serving.client import (
    AsyncClient,
    Client,
)
from dreamteacher.tasks.model import normalize

KINDS = [(kind, protocol) for kind in ("sync", "async") for protocol in ("http", "grpc")]


class Waited:
    """An AsyncClient with blocking methods, in its own event loop."""

    def __init__(self, *arguments, **options):
        self.runner = asyncio.Runner()
        self.client = AsyncClient(*arguments, **options)

    def __getattr__(self, name):
        return lambda *arguments: self.runner.run(getattr(self.client, name)(*arguments))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self.runner.close()


def connect(kind, protocol, triton, model="cells", **options):
    url = triton if isinstance(triton, str) else getattr(triton, f"{protocol}_url")
    return {"sync": Client, "async": Waited}[kind](url, model, protocol=protocol, **options)


def pixels(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def by_torch(task, picture):
    model = make_model(task)
    with torch.no_grad():
        logits = model(normalize(full_image(32)(Sample(picture, None, "a"))["image"][None], model.mean, model.std))[0]
    return logits[:, : picture.shape[0], : picture.shape[1]].argmax(0).numpy() if task == "segmentation" else logits.softmax(0).numpy()
