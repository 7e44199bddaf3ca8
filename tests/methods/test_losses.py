"""Losses against plain loops in float64, and properties of masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.multiprocessing as mp
from tiny_method import SIDE, create
from torch import Tensor
from torch.nn import functional as F

from dreamteacher.methods.byol import regression
from dreamteacher.methods.contrast import Queue, info_nce, nt_xent, unit
from dreamteacher.methods.densecl import matched
from dreamteacher.methods.masking import enlarge, hidden_error, patches, random_masks
from dreamteacher.methods.spark import SparseConvolutions
from dreamteacher.methods.swav import sinkhorn
from dreamteacher.students.backbone import Backbone
from dreamteacher.training.randomness import StepRandom


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


def test_info_nce_is_minus_the_log_of_the_keys_share() -> None:
    queries, keys, negatives = draw(5, 8), draw(5, 8, seed=1), draw(11, 8, seed=2)
    q, k, n = (each.double().numpy() for each in (queries, keys, negatives))
    expected = 0.0
    for i in range(5):
        own = math.exp(cosine(q[i], k[i]) / 0.2)
        expected -= math.log(own / (own + sum(math.exp(cosine(q[i], other) / 0.2) for other in n))) / 5
    assert float(info_nce(unit(queries), unit(keys), unit(negatives), 0.2)) == pytest.approx(expected, rel=1e-6)


def test_nt_xent_compares_each_view_with_all_others_but_itself() -> None:
    first, second = draw(4, 8), draw(4, 8, seed=1)
    z = torch.cat([first, second]).double().numpy()
    expected = 0.0
    for i in range(8):
        others = [math.exp(cosine(z[i], z[j]) / 0.5) for j in range(8) if j != i]
        expected -= math.log(math.exp(cosine(z[i], z[(i + 4) % 8]) / 0.5) / sum(others)) / 8
    assert float(nt_xent(unit(first), unit(second), 0.5)) == pytest.approx(expected, rel=1e-6)


def test_similarities_keep_float32_under_autocast() -> None:
    first, second = unit(draw(16, 32)), unit(draw(16, 32, seed=1))
    plain = nt_xent(first, second, 0.1), info_nce(first, second, second, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert (nt_xent(first, second, 0.1), info_nce(first, second, second, 0.1)) == plain


def test_byol_regresses_unit_vectors() -> None:
    predicted, target = draw(6, 8), draw(6, 8, seed=1)
    p, t = predicted.double().numpy(), target.double().numpy()
    expected = np.mean([2 - 2 * cosine(p[i], t[i]) for i in range(6)])
    assert float(regression(predicted, target)) == pytest.approx(expected, rel=1e-6)
    assert float(regression(predicted, 3 * predicted)) == pytest.approx(0, abs=1e-6)


def test_sinkhorn_is_three_turns_of_rows_and_columns() -> None:
    scores = unit(draw(12, 5)) @ unit(draw(4, 5, seed=1)).T
    shares = np.exp(scores.double().numpy() / 0.05)
    shares /= shares.sum()
    for _ in range(3):
        for prototype in range(4):
            shares[:, prototype] /= shares[:, prototype].sum() * 4
        for picture in range(12):
            shares[picture] /= shares[picture].sum() * 12
    codes = sinkhorn(scores)
    np.testing.assert_allclose(codes, shares * 12, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-5)


def test_places_are_matched_by_the_most_similar_maps() -> None:
    keys, maps, key_maps = draw(2, 3, 6), draw(2, 5, 4, seed=1), draw(2, 5, 6, seed=2)
    found = matched(keys, unit(maps), unit(key_maps))
    for picture in range(2):
        for place in range(4):
            similar = [cosine(maps[picture, :, place].numpy(), key_maps[picture, :, other].numpy()) for other in range(6)]
            assert torch.equal(found[picture, :, place], keys[picture, :, int(np.argmax(similar))])


@pytest.mark.parametrize(("cells", "ratio", "hidden"), [((4, 4), 0.75, 12), ((8, 8), 0.6, 38), ((2, 2), 0.01, 1), ((2, 2), 0.99, 3)])
def test_the_masked_share_is_exact_in_each_picture(cells: tuple[int, int], ratio: float, hidden: int) -> None:
    masks = random_masks(StepRandom(0, 0, 0, 1), 32, cells, ratio)
    assert masks.shape == (32, *cells) and masks.dtype == torch.bool
    assert set(masks.sum((1, 2)).tolist()) == {hidden}
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1
    halves = [random_masks(StepRandom(0, 0, part, 2), 16, cells, ratio) for part in range(2)]
    assert torch.equal(torch.cat(halves), masks)  # whatever the split of the batch


def test_only_hidden_patches_count_and_each_is_standardised() -> None:
    images, masks, predicted = torch.rand(2, 3, 8, 8), torch.zeros(2, 2, 2, dtype=torch.bool), draw(2, 4, 48)
    masks[0, 0, 1] = masks[0, 1, 1] = masks[1, 1, 0] = masks[1, 1, 1] = True
    errors = []
    for picture, row, column in masks.nonzero().tolist():
        patch = images[picture, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].double().permute(1, 2, 0).flatten().numpy()
        target = (patch - patch.mean()) / math.sqrt(patch.var(ddof=1) + 1e-6)
        errors.append(((predicted[picture, 2 * row + column].double().numpy() - target) ** 2).mean())
    assert float(hidden_error(predicted, images, masks, 2, 4)) == pytest.approx(np.mean(errors), rel=1e-5)
    assert torch.equal(enlarge(masks, 4)[0, 0], torch.kron(masks[0].int(), torch.ones(4, 4, dtype=torch.int)).bool())


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "resnet18"])
def test_sparse_convolutions_see_nothing_of_what_is_hidden(architecture: str) -> None:
    """Neither in the maps nor in the statistics of batch normalisation; and where nothing is hidden they are dense ones."""
    torch.manual_seed(0)
    backbone = Backbone(timm.create_model(architecture, num_classes=0), architecture).train()
    start = {key: value.clone() for key, value in backbone.state_dict().items()}
    side = 128 // backbone.strides[-1]
    masks = random_masks(StepRandom(0, 0, 0, 1), 4, (side, side), 0.6)

    def look(images: Tensor, seen: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        backbone.load_state_dict(start)
        sparse = SparseConvolutions(seen, int(seen[0].sum()))
        with sparse, torch.no_grad():
            pyramid = backbone(images)
        return [maps * sparse.at(maps.shape[2:]) for maps in pyramid], [value.clone() for value in backbone.buffers()]

    images = draw(4, 3, 128, 128)
    other = torch.where(enlarge(masks, backbone.strides[-1]), draw(4, 3, 128, 128, seed=1), images)
    for ours, theirs in zip(look(images, ~masks), look(other, ~masks), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    changed = look(torch.where(enlarge(masks, backbone.strides[-1]), images, other + 1), ~masks)[0]
    assert not torch.equal(changed[-1], look(images, ~masks)[0][-1])
    everything, statistics = look(images, torch.ones_like(masks))
    backbone.load_state_dict(start)
    with torch.no_grad():
        dense = backbone(images)
    for ours, theirs in zip([*everything, *statistics], [*dense, *backbone.buffers()], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_mae_sees_a_quarter_of_the_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    method, network = create("mae")
    network.eval()
    images = torch.rand(3, 3, SIDE, SIDE)
    masks = random_masks(StepRandom(0, 0, 0, 1), 3, (4, 4), 0.75)
    lengths: list[int] = []
    network.backbone.model.blocks[0].register_forward_pre_hook(lambda _, tokens: lengths.append(tokens[0].shape[1]))  # type: ignore[union-attr,index,operator]
    with torch.no_grad():
        predicted = network(images, masks, 12)
        other = network(torch.where(enlarge(masks, 16), torch.rand(3, 3, SIDE, SIDE), images), masks, 12)
    assert lengths == [4 + 1, 4 + 1]  # with the class token
    assert predicted.shape == (3, 16, 16 * 16 * 3)
    assert torch.equal(predicted, other)
    assert float(method.loss(network, {"image": images}, StepRandom(0, 0, 0, 1))["loss"].detach()) > 0


def test_mae_puts_what_it_saw_back_in_its_place() -> None:
    """With a decoder that does nothing, seen places hold their token, hidden ones the same for all."""
    _, network = create("mae")
    network.eval()
    network.blocks, network.predict = torch.nn.Identity(), torch.nn.Identity()
    images, masks = torch.rand(2, 3, SIDE, SIDE), random_masks(StepRandom(0, 0, 0, 1), 2, (4, 4), 0.5)
    vit: Any = network.backbone.model
    caught: list[Tensor] = []
    network.enter.register_forward_hook(lambda module, inputs, output: caught.append(output))  # type: ignore[union-attr,operator]
    with torch.no_grad():
        placed = network(images, masks, 8)
        zero = network(images, torch.ones_like(masks), 16)
    for picture in range(2):
        seen = (~masks[picture].flatten()).nonzero().flatten()
        positions = zero[picture] - network.hidden[0]
        torch.testing.assert_close(
            placed[picture, seen] - positions[seen], caught[0][picture, vit.num_prefix_tokens :], atol=1e-5, rtol=1e-4
        )
        hidden = masks[picture].flatten()
        torch.testing.assert_close(placed[picture, hidden], zero[picture, hidden])


def test_simmim_hides_cells_of_which_six_or_more_fit_in_a_row() -> None:
    for resolution, cell in ((64, 8), (128, 16), (192, 32), (512, 32)):
        assert create("simmim", resolution=resolution)[0].cell == cell  # type: ignore[attr-defined]


def test_patches_run_row_by_row() -> None:
    picture = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    assert patches(picture, 2)[0, :, ::3].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_two_processes_compare_with_all_pictures(tmp_path: Path) -> None:
    """Loss, gradient, queue and assignments are those of one process with the whole batch."""
    first, second = draw(8, 6), draw(8, 6, seed=1)
    mp.start_processes(_half, (str(tmp_path),), nprocs=2, start_method="fork")
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    leaf = first.clone().requires_grad_()
    loss = nt_xent(unit(leaf), unit(second), 0.5)
    loss.backward()
    assert leaf.grad is not None
    torch.testing.assert_close(torch.stack([half["loss"] for half in halves]).mean(), loss.detach())
    torch.testing.assert_close(torch.cat([half["gradient"] for half in halves]) / 2, leaf.grad)  # DDP takes the mean
    for half in halves:
        assert torch.equal(half["queue"][:8], unit(second))
    torch.testing.assert_close(torch.cat([half["codes"] for half in halves]), sinkhorn(unit(first) @ unit(second).T))


def _half(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    first, second = draw(8, 6).chunk(2)[rank].clone().requires_grad_(), draw(8, 6, seed=1).chunk(2)[rank]
    loss = nt_xent(unit(first), unit(second), 0.5)
    loss.backward()
    queue = Queue(9, 6)
    queue.add(unit(second))
    from dreamteacher.methods.swav import Network

    with torch.no_grad():
        prototypes = unit(draw(8, 6, seed=1))
        codes = Network._assign(None, unit(first) @ prototypes.T, prototypes, None)  # type: ignore[arg-type]
    torch.save({"loss": loss.detach(), "gradient": first.grad, "queue": queue.values, "codes": codes}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_unit_vectors_are_float32() -> None:
    assert F.normalize(draw(2, 3), dim=1).equal(unit(draw(2, 3)))
    assert unit(draw(2, 3).bfloat16()).dtype == torch.float32
