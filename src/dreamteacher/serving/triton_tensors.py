"""Tensors of Triton's python backend as numpy arrays and back. Copied as `1/triton_tensors.py`, beside the `model.py` that imports it.

Uses DLPack: with numpy 2, the numpy calls of the backend of Triton 24.10 and older return empty or wrong tensors without an error;
with numpy 1, its DLPack calls crash.
"""

import ctypes

import numpy as np
import triton_python_backend_utils as pb_utils

NUMPY_2 = np.lib.NumpyVersion(np.__version__) >= "2.0.0"
USED = b"used_dltensor"  # the name of a consumed DLPack capsule

_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


def read(tensor):
    """A tensor of Triton's as a numpy array, which may share its memory."""
    return np.from_dlpack(tensor) if NUMPY_2 else tensor.as_numpy()


def write(name, array):
    """A numpy array, writable and contiguous, as a tensor of Triton's."""
    if not NUMPY_2:
        return pb_utils.Tensor(name, array)
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # Triton 24.10 names a capsule "used_dlpack", about which numpy complains at deletion: a traceback in the server's log for each tensor,
    # a tenth of the time of NAME-pictures and 2 kB of log per response.
    _set_name(capsule, USED)
    return tensor
