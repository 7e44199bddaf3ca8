"""NAME-pictures: from the bytes of a picture to its prediction. Copied as `1/model.py`, with the modules it needs of this package.

Decodes, preprocesses and postprocesses exactly as `dreamteacher predict`, and calls NAME (and NAME-backbone for the embedding) on the
same server. Needs numpy and Pillow in the server's Python, and no dreamteacher there.

The bytes are a UINT8 tensor (1, number of bytes), one picture per request; Triton batches requests of different lengths. They are not a
BYTES tensor, since those cannot be passed by DLPack, and with numpy 2 the backend of Triton 24.10 and older reads them wrongly (see
triton_tensors).
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.dont_write_bytecode = True  # the repository is as it was published, and may be read-only
sys.path.insert(0, str(Path(__file__).parent))

try:
    import PIL  # noqa: F401
except ImportError as error:
    advice = "install it in the image (pip install pillow), or publish with publish.pictures = false"
    raise ImportError(f"NAME-pictures needs Pillow in Triton's Python; {advice}") from error

from triton_tensors import read, write  # noqa: E402

from dreamteacher.data.decode import BadPicture, decode  # noqa: E402
from dreamteacher.serving.answers import kind_of  # noqa: E402
from dreamteacher.serving.contract import Contract, prepare  # noqa: E402
from dreamteacher.serving.sampling import Sampler  # noqa: E402


class Failed(Exception):
    """The error of a request, with Triton's code."""

    def __init__(self, text, code):
        super().__init__(text)
        self.code = code

    def response(self):
        """A separate error response per request: Triton 24.10 crashes when two of a batch share one."""
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(self), self.code))


def _words(error):
    return f"{type(error).__name__}: {error}"


class TritonPythonModel:
    """The python backend's interface: `initialize` once, then `execute` for every batch of requests."""

    def initialize(self, args):
        """Read the contract and the names of the models to call."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.contract = Contract.from_metadata(parameters, config["name"])
        self.kind = kind_of(self.contract)
        self.model, self.backbone = parameters["model"], parameters.get("backbone")
        self.max_pixels, self.max_request_pixels = int(parameters["max_pixels"]), int(parameters["max_request_pixels"])
        self.sampler = Sampler.from_environment(os.environ, config, self.max_pixels)

    def finalize(self):
        """Flush the sampled pictures."""
        if self.sampler:
            self.sampler.close()

    def execute(self, requests):
        """One response per request, in order; pictures of equal preprocessed shape share a request to NAME."""
        responses = [None] * len(requests)
        waiting: dict = {}  # prepared shape -> its pictures
        pixels = 0
        for index, request in enumerate(requests):
            try:
                images, prepared, size = self._prepare(request)
            except Failed as failed:
                responses[index] = failed.response()
                continue
            shape = images.shape[2:]
            if waiting and pixels + shape[0] * shape[1] > self.max_request_pixels:  # a batch of large pictures is split
                self._answer(waiting, requests, responses)
                waiting, pixels = {}, 0
            waiting.setdefault(shape, []).append((index, images, prepared, size))
            pixels += shape[0] * shape[1]
        self._answer(waiting, requests, responses)
        return responses

    def _prepare(self, request):
        """The model's input, its size without padding, and the picture's own size."""
        data = read(pb_utils.get_input_tensor_by_name(request, "picture"))
        if len(data) != 1:
            raise Failed(f"one picture a request, not {len(data)}; send its bytes as UINT8 (1, length)", pb_utils.TritonError.INVALID_ARG)
        try:
            file = data.tobytes()
            picture = decode(file, max_pixels=self.max_pixels).image
            if self.sampler:
                self.sampler.offer(file)
            return *prepare(picture, self.contract, max_pixels=self.max_request_pixels), picture.shape[:2]
        except BadPicture as error:
            raise Failed(str(error), pb_utils.TritonError.INVALID_ARG) from None
        except Exception as error:  # out of memory; the server continues
            raise Failed(_words(error), pb_utils.TritonError.INTERNAL) from None

    def _answer(self, waiting, requests, responses):
        for pictures in waiting.values():
            wanted = [requests[index].requested_output_names() for index, *_ in pictures]
            images = np.concatenate([images for _, images, _, _ in pictures])
            try:
                answers = self._ask_for(images, {name for names in wanted for name in names})
                for i, (index, _, prepared, size) in enumerate(pictures):
                    outputs = {"embedding": answers["embedding"][i]} if "embedding" in wanted[i] else {}
                    if set(wanted[i]) - {"embedding"}:
                        of_picture = {name: answers[name][i] for name in self.kind.OUTPUTS}
                        outputs |= self.kind.of_outputs(self.contract, of_picture, prepared, size).to_tensors()
                    # Copies, since DLPack takes no read-only array.
                    tensors = [write(name, np.array(outputs[name][None], order="C")) for name in wanted[i]]
                    responses[index] = pb_utils.InferenceResponse(tensors)
            except Exception as error:  # out of memory, or NAME refuses
                failed = error if isinstance(error, Failed) else Failed(_words(error), pb_utils.TritonError.INTERNAL)
                for index, *_ in pictures:
                    responses[index] = failed.response()

    def _ask_for(self, images, wanted):
        """The outputs of the called models that the requested outputs need."""
        answers: dict = {}
        if wanted - {"embedding"}:
            answers |= self._ask(self.model, self.kind.OUTPUTS, images)
        if "embedding" in wanted:
            answers |= self._ask(self.backbone, ["embedding"], images)
        return answers

    def _ask(self, model, outputs, images):
        """Outputs of another model of this server by name, in main memory."""
        place = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
        tensors = [write("images", images)]
        request = pb_utils.InferenceRequest(model_name=model, inputs=tensors, requested_output_names=list(outputs), preferred_memory=place)
        response = request.exec()
        if response.has_error():
            text = response.error().message()
            busy = "queue size" in text or "timeout expired" in text  # its queue is full, which Triton reports as an internal error here
            raise Failed(f"{model}: {text}", pb_utils.TritonError.UNAVAILABLE if busy else response.error().code())
        return {name: np.array(read(pb_utils.get_output_tensor_by_name(response, name))) for name in outputs}
