"""Export a torch module to one ONNX file with the preprocessing contract, checked against torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from dreamteacher.errors import UserError, first_line, is_disk_full
from dreamteacher.files import sync_to_disk
from dreamteacher.onnx_files import INPUT
from dreamteacher.serving.exportable import exportable_operators

BATCHES = (1, 2, 5)  # batch sizes of the parity check
MULTIPLE = 32  # height and width of the input must be multiples of it
Arrays = list[np.ndarray]
Align = Callable[[Arrays, Arrays], Arrays]  # see `Task.align`


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    parity: largest |onnxruntime - torch| over all outputs, batch sizes and picture sizes.
    fixed_because: why the file accepts only one picture size; None if it accepts any multiple of 32.
    """

    parity: float
    fixed_because: str | None


def as_it_is(theirs: Arrays, ours: Arrays) -> Arrays:
    """No alignment, for outputs with a fixed order."""
    return theirs


def export(
    module: nn.Module,
    path: Path,
    outputs: Sequence[str],
    *,
    size: int,
    opset: int,
    tolerance: float,
    metadata: dict[str, str],
    align: Align = as_it_is,
) -> Exported:
    """Write `module` to `path` as one ONNX file: input `images` float32 (N, 3, H, W), outputs named `outputs`, first dimension N.

    N is dynamic. H and W are dynamic too, unless that cannot be exported or differs from torch at a second, oblong size: then the
    file accepts only `size` x `size`. `metadata` is written to the file, with `dynamic_size` added. The file is written atomically,
    after `onnx.checker` and `check_parity`.

    `dynamo=False`: the newer exporter of torch 2.11 to 2.15 cannot write opset 17, stores paths of this machine in the file, takes
    20 times longer, and gave no better graph for timm's families. The tracer may bake a size into the graph; the second size detects it.

    Raises:
        UserError: the file differs from the module by more than `tolerance`.
    """
    module = module.float().cpu().eval()
    square, oblong = (size, size), (size + MULTIPLE, size + 2 * MULTIPLE)
    with TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        write = partial(_write, module, temporary, outputs, size=size, opset=opset, metadata=metadata)
        try:
            write(dynamic=True)
            done = Exported(check_parity(temporary, module, sizes=[square, oblong], tolerance=tolerance, align=align), None)
        except Exception as error:  # the module at another size and onnxruntime raise various errors
            if is_disk_full(error):
                raise
            write(dynamic=False)
            done = Exported(check_parity(temporary, module, sizes=[square], tolerance=tolerance, align=align), first_line(error))
        sync_to_disk(temporary)
        temporary.replace(path)
    return done


def check_parity(
    onnx_path: Path,
    module: nn.Module,
    *,
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int] = BATCHES,
    tolerance: float,
    align: Align = as_it_is,
) -> float:
    """Largest |onnxruntime - torch| in fp32 over every (H, W) of `sizes` with every N of `batches`, on standard normal input.

    `align` reorders onnxruntime's outputs to match torch's (see `Task.align`).

    Raises:
        UserError: it is more than `tolerance` (or not a number), or a shape differs; names output, batch and size.
    """
    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    random = torch.Generator().manual_seed(0)
    worst = 0.0
    for height, width in sizes:
        for batch in batches:
            images = torch.randn(batch, 3, height, width, generator=random)
            expected = _outputs(module, images)
            found = align(session.run(None, {INPUT: images.numpy()}), expected)
            for output, theirs, ours in zip(names, found, expected, strict=True):
                where = f"{onnx_path.name}: output {output} for {batch} x 3 x {height} x {width}"
                if theirs.shape != ours.shape:
                    raise UserError(f"{where} has shape {theirs.shape} in onnxruntime and {ours.shape} in torch; choose another backbone")
                difference = float(np.abs(theirs - ours).max())
                if not difference <= tolerance:
                    raise UserError(
                        f"{where} differs from torch by {difference:.3g}, more than export.tolerance = {tolerance:g}; "
                        "choose another export.opset or backbone, or raise the tolerance if that is acceptable"
                    )
                worst = max(worst, difference)
    return worst


def _write(
    module: nn.Module, path: Path, outputs: Sequence[str], *, size: int, opset: int, metadata: dict[str, str], dynamic: bool
) -> None:
    images = torch.zeros(2, 3, size, size)
    free = {0: "N", 2: "H", 3: "W"} if dynamic else {0: "N"}
    with warnings.catch_warnings(), torch.no_grad(), exportable_operators():
        warnings.simplefilter("ignore")  # about the exporter's deprecation, and about constants in the trace, which the parity check covers
        try:
            torch.onnx.export(
                module,
                (images,),
                str(path),
                dynamo=False,
                external_data=False,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_axes={INPUT: free} | {name: {0: "N"} for name in outputs},
            )
        except Exception as error:
            if is_disk_full(error):
                raise
            why = f"torch cannot write this model as ONNX opset {opset} ({first_line(error)})"
            raise UserError(f"{why}; choose another student.backbone or export.opset") from error
    model = onnx.load(path)
    for output, example in zip(model.graph.output, _outputs(module, images), strict=True):
        # The tracer loses shapes after a dynamic size, but Triton needs the channels.
        dims = [f"{output.name}_{'NCHW'[i]}" if dynamic and i > 1 else int(length) for i, length in enumerate(example.shape)]
        output.type.CopyFrom(onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ["N", *dims[1:]]))
    onnx.helper.set_model_props(model, dict(sorted((metadata | {"dynamic_size": str(dynamic).lower()}).items())))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _outputs(module: nn.Module, images: Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        given = module(images)
    return [tensor.numpy() for tensor in ([given] if isinstance(given, Tensor) else given)]
