"""Published BigGAN checkpoints give the same pictures as their original networks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import biggan_files
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.teachers.biggan_network import BigGAN
from dreamteacher.teachers.encodings import Stochastic
from dreamteacher.teachers.folder import choose_strides, open_teacher, read_facts
from dreamteacher.teachers.importing import import_teacher
from dreamteacher.training.randomness import StepRandom


def random(step: int = 0) -> StepRandom:
    return StepRandom(3, step, 0, 1)


def network(folder: Path) -> BigGAN:
    return open_teacher(folder, None, Stochastic(0)).network  # type: ignore[attr-defined, no-any-return]


def hub(folder: Path, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = biggan_files.Hub({**biggan_files.HUB, **config})
    model(torch.randn(2, 6), torch.eye(5)[:2], 1.0)  # a step of power iteration
    folder.mkdir()
    torch.save(model.eval().state_dict(), folder / "biggan-deep-16-pytorch_model.bin")
    (folder / "biggan-deep-16-config.json").write_text(json.dumps({**biggan_files.HUB, **config, "output_dim": 16}))
    return model


@pytest.mark.parametrize("truncation", [1.0, 0.4, 0.41])
def test_a_deep_biggan_makes_the_pictures_of_the_published_model(truncation: float, tmp_path: Path) -> None:
    """At 0.41 with the swapped weights of its statistics."""
    model = hub(tmp_path / "hub")
    import_teacher("biggan", str(tmp_path / "hub"), tmp_path / "teacher", [f"truncation={truncation}"])
    ours, z, labels = network(tmp_path / "teacher"), torch.randn(3, 6), torch.tensor([4, 0, 2])
    with torch.no_grad():
        pictures, maps = ours(z, ours.embed(labels))  # type: ignore[misc]
        expected = model(z, nn.functional.one_hot(labels, 5).float(), truncation)
    torch.testing.assert_close(pictures, expected, rtol=1e-4, atol=1e-5)
    assert {side: m.shape[1] for side, m in maps.items()} == {4: 64, 8: 32, 16: 4}
    drawn = ours.draw_z(4000, random())
    assert float(drawn.abs().max()) <= 2 * truncation
    assert float(drawn.std()) == pytest.approx(0.8796 * truncation, rel=0.02)  # of the normal distribution within 2 deviations


def wide(path: Path, **shape: Any) -> biggan_files.WideGAN:
    torch.manual_seed(0)
    model = biggan_files.WideGAN(**shape).eval()
    torch.save(model.state_dict(), path)
    return model


@pytest.mark.parametrize("hier", [False, True])
@pytest.mark.parametrize("kind", ["", "my", "cross"])
def test_a_wide_biggan_makes_the_pictures_of_the_network_that_was_saved(hier: bool, kind: str, tmp_path: Path) -> None:
    model = wide(tmp_path / "G_ema.pth", by_class=True, instances=0, hier=hier, kind=kind)
    import_teacher("biggan", str(tmp_path / "G_ema.pth"), tmp_path / "teacher", [])
    ours, z, labels = network(tmp_path / "teacher"), torch.randn(3, 9), torch.tensor([4, 0, 2])
    with torch.no_grad():
        pictures, maps = ours(z, ours.embed(labels))  # type: ignore[misc]
        torch.testing.assert_close(pictures, model(z, labels, None), rtol=1e-4, atol=1e-5)
    assert {side: m.shape[1] for side, m in maps.items()} == {8: 16, 16: 8}
    assert float(ours.draw_z(4000, random()).abs().max()) > 2  # no truncation


def instances(path: Path, length: int = 13, labels: Any = (0, 4, 2, 1), **changes: Any) -> Tensor:
    features = np.random.default_rng(0).normal(size=(4, length)).astype(np.float32)
    content = {"instance_features": features, "labels": np.array(labels), "image_path": ["a.png"] * 4, **changes}
    np.save(path, content, allow_pickle=True)  # type: ignore[arg-type]
    return torch.from_numpy(features)


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("hier", [False, True])
def test_an_icgan_is_conditioned_on_drawn_instances_and_their_classes(by_class: bool, hier: bool, tmp_path: Path) -> None:
    model = wide(tmp_path / "G_ema_best0.pth", by_class=by_class, instances=13, hier=hier)
    features = instances(tmp_path / "stored.npy")
    import_teacher("icgan", str(tmp_path / "G_ema_best0.pth"), tmp_path / "teacher", [f"instances={tmp_path / 'stored.npy'}"])
    ours = network(tmp_path / "teacher")
    with torch.no_grad():
        lesson = open_teacher(tmp_path / "teacher", None, Stochastic(0)).teach(torch.zeros(40, 3, 8, 8), random())
        same = random()
        z, drawn = ours.draw_z(40, same), same.integers(0, 4, 40)
        expected = model(z, torch.tensor([0, 4, 2, 1])[drawn], features[drawn])
    assert set(drawn.tolist()) == {0, 1, 2, 3}
    torch.testing.assert_close(lesson.images, expected / 2 + 0.5, rtol=1e-4, atol=1e-5)
    assert read_facts(tmp_path / "teacher")["kind"] == "icgan"


def test_of_several_generators_the_one_of_the_lower_fid_is_taken(tmp_path: Path) -> None:
    for name, fid, seed in (("best0", 20.0, 0), ("best1", 17.0, 1)):
        torch.manual_seed(seed)
        model = biggan_files.WideGAN(by_class=False, instances=13, hier=False)
        torch.save(model.state_dict(), tmp_path / f"G_ema_{name}.pth")
        torch.save({"best_FID": fid}, tmp_path / f"state_dict_{name}.pth")
    instances(tmp_path / "stored.npy")
    import_teacher("icgan", str(tmp_path), tmp_path / "teacher", [f"instances={tmp_path / 'stored.npy'}"])
    (tmp_path / "state_dict_best1.pth").unlink()
    with pytest.raises(
        UserError, match=r"several generators \(G_ema_best0\.pth, G_ema_best1\.pth\), of which it does not say .+; name one"
    ):
        import_teacher("icgan", str(tmp_path), tmp_path / "other", [f"instances={tmp_path / 'stored.npy'}"])
    assert torch.equal(network(tmp_path / "teacher").layers[0].convs[0].bias, model.blocks[0][0].conv1.bias)  # type: ignore[index, union-attr]


def test_classes_are_drawn_alike_and_features_are_those_of_the_same_pass(tmp_path: Path) -> None:
    hub(tmp_path / "hub")
    import_teacher("biggan", str(tmp_path / "hub"), tmp_path / "teacher", [])
    assert choose_strides(tmp_path / "teacher", "auto") == [2, 4]
    teacher = open_teacher(tmp_path / "teacher", [2, 4], Stochastic(0))
    lesson = teacher.teach(torch.rand(3, 3, 64, 64), random())
    assert lesson.images.shape == (3, 3, 16, 16) and lesson.images.min() >= 0 and lesson.images.max() <= 1
    assert [tuple(m.shape) for m in lesson.features] == [(3, 32, 8, 8), (3, 64, 4, 4)]
    seen = []
    ours = network(tmp_path / "teacher")
    for layer in ours.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    ours.dream(3, random())
    torch.testing.assert_close(lesson.features[1], seen[0])  # the only layer at 4 px
    torch.testing.assert_close(lesson.features[0], seen[3])  # the last at 8 px, after attention
    condition = ours.draw_condition(5000, random())
    shares = [float((condition == embedding).all(1).float().mean()) for embedding in ours.embed.weight]  # type: ignore[union-attr]
    assert shares == pytest.approx([0.2] * 5, abs=0.03) and math.isclose(sum(shares), 1, rel_tol=1e-5)


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    def refused(kind: str, source: Path, message: str, *options: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            import_teacher(kind, str(source), tmp_path / "teacher", list(options))
        assert "\n" not in str(error.value)
        assert not (tmp_path / "teacher").exists()

    stored = f"instances={tmp_path / 'stored.npy'}"
    instances(tmp_path / "stored.npy")
    model = wide(tmp_path / "ic.pth", by_class=False, instances=13, hier=False)
    refused("biggan", tmp_path / "ic.pth", "is conditioned on features of instances; import it as kind icgan")
    refused("icgan", tmp_path / "ic.pth", "give them by --option instances=FILE.npy")
    refused("icgan", tmp_path / "ic.pth", "there is no --option instance", stored, "instance=3")
    refused("icgan", tmp_path / "ic.pth", "eps=x is no number between 0 and 1", stored, "eps=x")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    refused("icgan", tmp_path / "a.tar.gz", "is an archive; unpack it, and name the folder", stored)
    instances(tmp_path / "stored.npy", length=12)
    refused("icgan", tmp_path / "ic.pth", "wants instance features of length 13, the stored ones have 12", stored)
    np.save(tmp_path / "stored.npy", np.zeros(3))
    refused("icgan", tmp_path / "ic.pth", "holds no features", stored)
    state = model.state_dict()
    instances(tmp_path / "stored.npy")
    torch.save({**state, "blocks.0.0.extra.weight": torch.ones(2)}, tmp_path / "ic.pth")
    refused("icgan", tmp_path / "ic.pth", r"has blocks\.0\.0\.extra\.weight, which a BigGAN of this layout has not", stored)
    torch.save({name: value for name, value in state.items() if name != "linear.bias"}, tmp_path / "ic.pth")
    refused("icgan", tmp_path / "ic.pth", r"is no whole generator of BigGAN-PyTorch: 'linear\.bias' is missing", stored)
    wide(tmp_path / "cc.pth", by_class=True, instances=13, hier=False)
    instances(tmp_path / "stored.npy", labels=(0, 1, 2, 9))
    refused("icgan", tmp_path / "cc.pth", "knows 5 classes, the stored instances are of others, up to 9", stored)
    hub(tmp_path / "hub")
    (tmp_path / "hub/biggan-deep-16-config.json").write_text("{}")
    refused("biggan", tmp_path / "hub", r"is no configuration of a BigGAN-deep \('channel_width'\)")
    (tmp_path / "hub/biggan-deep-16-config.json").write_text(json.dumps({**biggan_files.HUB, "z_dim": 8}))
    refused("biggan", tmp_path / "hub", r"of embed\.weight it has \(5, 6\), the network \(5, 8\)")
    (tmp_path / "empty").mkdir()
    refused("biggan", tmp_path / "empty", r"must hold one config\.json and one file of weights")
    (tmp_path / "ic.pth").write_text("root:x:0:0\n")
    refused("biggan", tmp_path / "ic.pth", r"ic\.pth is no checkpoint of torch, or damaged")
    (tmp_path / "hub/other.bin").write_bytes(b"")
    refused("biggan", tmp_path / "hub", r"must hold one config\.json and one file of weights .+; it has 2 of these")
