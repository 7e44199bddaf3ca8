"""The model of a local Triton repository: onnxruntime behind Triton's python backend. Copied there as `1/model.py`."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

sys.dont_write_bytecode = True  # the repository is as it was published, and may be read-only
sys.path.insert(0, str(Path(__file__).parent))

from triton_tensors import read, write  # noqa: E402


class TritonPythonModel:
    """The python backend's interface: `initialize` once, then `execute` for every batch of requests."""

    def initialize(self, args):
        """Open `model.onnx` beside this file and run it once."""
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["intra_op_num_threads"]["string_value"])
        options.inter_op_num_threads = 1
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input = config["input"][0]["name"]
        self.outputs = [output["name"] for output in config["output"]]
        self.max_pixels = int(config["parameters"]["max_request_pixels"]["string_value"])
        size = int(config["parameters"]["size"]["string_value"])
        self.session.run(self.outputs, {self.input: np.zeros((1, 3, size, size), np.float32)})  # the first run is slow, or fails

    def execute(self, requests):
        """One response per request, in order; all pictures are run as one batch."""
        images = [read(pb_utils.get_input_tensor_by_name(request, self.input)) for request in requests]
        responses = [self._refusal(part) for part in images]
        good = [index for index, refusal in enumerate(responses) if refusal is None]
        wanted = [requests[index].requested_output_names() for index in good]
        for index, response in zip(good, self._run([images[index] for index in good], wanted), strict=True):
            responses[index] = response
        return responses

    def _refusal(self, images):
        """The error for a request that would need too much memory, or None."""
        count, _, height, width = images.shape
        if count * height * width <= self.max_pixels:
            return None
        words = f"{count} x {width} x {height} pixels in a request are more than {self.max_pixels}"
        text = f"{words}; send less, or publish with a larger publish.max_request_pixels"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG))

    def _run(self, images, wanted):
        """Responses with each request's requested outputs only; others are not copied."""
        if not images:
            return []
        names = [name for name in self.outputs if any(name in each for each in wanted)]
        try:
            results = self.session.run(names, {self.input: np.concatenate(images)})
        except Exception as error:  # the server goes on, these requests learn why
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))) for _ in images]
        responses, start = [], 0
        for part, own in zip(images, wanted, strict=True):
            end = start + len(part)
            tensors = [write(name, result[start:end]) for name, result in zip(names, results, strict=True) if name in own]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = end
        return responses
