"""The number format and layout by device."""

from pathlib import Path

import pytest
import torch

from dreamteacher.training import precision
from dreamteacher.training.precision import choose_layout, choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16"])
def test_auto_is_bf16_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: f"processor\t: 0\nflags\t\t: fpu avx2 {flag}\n")
    assert choose_precision("auto", CPU) == torch.bfloat16
    assert choose_precision("fp32", CPU) == torch.float32


@pytest.mark.parametrize("text", ["flags\t\t: fpu avx2 avx512f\n", "Features\t: fp asimd\n"])
def test_auto_is_fp32_where_it_has_not(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert choose_precision("auto", CPU) == torch.float32
    assert choose_precision("bf16", CPU) == torch.bfloat16


def test_auto_is_fp32_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert precision._cpu_flags() == set()
    assert choose_precision("auto", CPU) == torch.float32
    assert choose_precision("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize("has", [True, False])
def test_auto_asks_cuda_for_hardware_bf16(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has and not including_emulation)
    assert choose_precision("auto", CUDA) == (torch.bfloat16 if has else torch.float32)


def test_layout_is_the_measured_one() -> None:
    assert choose_layout(CUDA, torch.bfloat16) == torch.channels_last
    assert choose_layout(CPU, torch.float32) == torch.channels_last
    assert choose_layout(CPU, torch.bfloat16) == torch.contiguous_format
