"""Pipelines of diffusers as teachers: maps against diffusers' own whole pass, latents and noise against the closed forms."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from diffusers_models import MODELS, autoencoder, pixels, text_unet
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreamteacher.errors import UserError
from dreamteacher.teachers.base import Teacher
from dreamteacher.teachers.encodings import Dream, Encoding, Inversion, Stochastic
from dreamteacher.teachers.folder import open_teacher, read_facts
from dreamteacher.teachers.importing import import_teacher
from dreamteacher.teachers.latent import Latents
from dreamteacher.teachers.transformer import flow_schedule
from dreamteacher.training.randomness import StepRandom

AT_40 = Stochastic(40)


def taught(name: str, folder: Path, encoding: Encoding = AT_40, more: tuple[str, ...] = ()) -> Teacher:
    torch.manual_seed(0)
    options = MODELS[name](folder)
    import_teacher("diffusers", str(folder / "source"), folder / "teacher", [*options, *more])
    return open_teacher(folder / "teacher", None, encoding)


def images(height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def part(folder: Path, name: str) -> Any:
    """A part of the pipeline as diffusers alone reads it."""
    model = json.loads((folder / "source/model_index.json").read_text())[name][1]
    return getattr(diffusers, model).from_pretrained(folder / "source" / name).eval()


def kept_at_40(name: str) -> float:
    """alpha_bar by the papers' schedules."""
    if name in ("pixels", "dit"):
        steps = 200 if name == "pixels" else 1000
        return math.prod(1 - (1e-4 + (2e-2 - 1e-4) * t / (steps - 1)) for t in range(41))
    return math.prod(1 - (math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * t / 999) ** 2 for t in range(41))


def clean_inputs(name: str, folder: Path, pictures: Tensor) -> Tensor:
    """What the network of the pipeline is trained to make, by the papers: pictures in [-1, 1], or scaled latents of those."""
    if name == "pixels":
        return pictures * 2 - 1
    if name == "unconditional_latents":
        return part(folder, "vqvae").encode(pictures * 2 - 1).latents * 0.18215
    means = part(folder, "vae").encode(pictures * 2 - 1).latent_dist.mean
    return (means - 0.0609) * 1.5305 if name == "stable_diffusion_3" else means * 0.18215


@torch.no_grad()
def expected_maps(name: str, folder: Path, pictures: Tensor) -> list[Tensor]:
    """What the untouched network hands from level to level of its decoder, or from block to block, fine to coarse."""
    clean = clean_inputs(name, folder, pictures)
    noise, seen = StepRandom(3, 0, 0, 1).normal(clean.shape), []
    arguments: dict[str, Any] = {}
    if (folder / "prompt.safetensors").exists():
        prompt = load_file(folder / "prompt.safetensors")
        arguments["encoder_hidden_states"] = prompt["prompt_embeds"].repeat(2, 1, 1)
        if name == "stable_diffusion_xl":
            sizes = torch.tensor([[*pictures.shape[2:], 0, 0, *pictures.shape[2:]]]).repeat(2, 1)
            arguments["added_cond_kwargs"] = {"text_embeds": prompt["pooled_prompt_embeds"].repeat(2, 1), "time_ids": sizes}
        if name == "stable_diffusion_3":
            arguments["pooled_projections"] = prompt["pooled_prompt_embeds"].repeat(2, 1)
    if name == "stable_diffusion_3":  # x_t = (1 - s) x + s noise (Esser et al. 2024, Eq 13); the network sees 1000 s
        level = 40 / 1000
        network, noisy, step = part(folder, "transformer"), (1 - level) * clean + level * noise, torch.tensor([1000 * level] * 2)
    else:
        a = kept_at_40(name)
        network = part(folder, "transformer" if name == "dit" else "unet")
        noisy, step = math.sqrt(a) * clean + math.sqrt(1 - a) * noise, torch.tensor([40, 40])
    if name in ("dit", "stable_diffusion_3"):
        network.transformer_blocks[1].register_forward_hook(
            lambda module, inputs, output: seen.append(output[1] if isinstance(output, tuple) else output)
        )
        if name == "dit":
            arguments["class_labels"] = torch.tensor([10, 10])  # behind its 10 classes: none
        network(noisy, timestep=step, **arguments)
        return [seen[0].transpose(1, 2).reshape(2, 16, noisy.shape[2] // 2, noisy.shape[3] // 2)]
    for module in [*(block.upsamplers[0] for block in network.up_blocks[:-1]), network.conv_norm_out]:
        module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(noisy, step, **arguments)
    return seen[::-1]


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_a_whole_pass(name: str, tmp_path: Path) -> None:
    teacher = taught(name, tmp_path)
    pictures = images(16, 16) if name == "dit" else images()  # diffusers' own pass of DiT takes squares alone
    lesson = teacher.teach(pictures, StepRandom(3, 0, 0, 1))
    expected = expected_maps(name, tmp_path, pictures)
    assert lesson.images is pictures
    assert len(expected) == len(lesson.features) == len(teacher.taps)
    for tap, maps, reference in zip(teacher.taps, lesson.features, expected, strict=True):
        assert maps.shape == (2, tap.channels, 16 // tap.stride, pictures.shape[3] // tap.stride)
        torch.testing.assert_close(maps, reference, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_encoding_works_on_any_shape_and_its_pictures_are_pictures(name: str, tmp_path: Path) -> None:
    teacher = taught(name, tmp_path)
    for encoding in (Inversion(40, 2), Dream(40, 3)):
        lesson = teacher.with_encoding(encoding).teach(images(), StepRandom(3, 0, 0, 1))
        assert lesson.images.shape == (2, 3, 16, 24)
        assert lesson.images.min() >= 0
        assert lesson.images.max() <= 1
        assert all(maps.isfinite().all() for maps in lesson.features)
    assert not torch.equal(lesson.images, images())


def test_a_dit_predicts_what_diffusers_does(tmp_path: Path) -> None:
    teacher: Any = taught("dit", tmp_path)
    noisy, steps = torch.randn(2, 4, 4, 4), torch.tensor([3, 700])
    with torch.no_grad():
        output = part(tmp_path, "transformer")(noisy, timestep=steps, class_labels=torch.tensor([10, 10])).sample[:, :4]
        torch.testing.assert_close(teacher.predict_noise(noisy, steps), output, rtol=1e-4, atol=1e-5)


def test_the_noise_that_a_flow_predicts_is_that_in_its_inputs(tmp_path: Path) -> None:
    teacher: Any = taught("stable_diffusion_3", tmp_path)
    latents, noise, steps = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 4, 4), torch.tensor([40, 700])

    class Perfect(nn.Module):
        def forward(self, inputs: Tensor, **arguments: Any) -> Any:
            level = (arguments["timestep"] / 1000)[:, None, None, None]
            torch.testing.assert_close(inputs, (1 - level) * latents + level * noise)
            return type("Output", (), {"sample": noise - latents})

    teacher.network = Perfect()
    torch.testing.assert_close(
        teacher.predict_noise(flow_schedule(1000).add_noise(latents, noise, steps), steps), noise, rtol=1e-4, atol=1e-4
    )


def test_an_autoencoder_with_statistics_of_its_latents_standardises_them() -> None:
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    vae, pictures = autoencoder(latents_mean=mean, latents_std=std, scaling_factor=0.5).eval(), images()
    space = Latents(vae)
    with torch.no_grad():
        expected = (
            (vae.encode(pictures * 2 - 1).latent_dist.mean - torch.tensor(mean).view(1, 4, 1, 1)) * 0.5 / torch.tensor(std).view(1, 4, 1, 1)
        )
        latents = space.encode(pictures)
        torch.testing.assert_close(latents, expected)
        decoded = vae.decode(vae.encode(pictures * 2 - 1).latent_dist.mean).sample
        torch.testing.assert_close(space.decode(latents), (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_blocks_of_a_transformer_and_its_class_are_chosen(tmp_path: Path) -> None:
    both = taught("dit", tmp_path, more=("blocks=0,2", "class=3"))
    assert [(tap.name, tap.stride, tap.channels) for tap in both.taps] == [("transformer_blocks.0+2", 8, 32)]
    network, seen = part(tmp_path, "transformer"), []
    for i in (0, 2):
        network.transformer_blocks[i].register_forward_hook(lambda module, inputs, output: seen.append(output))
    pictures = images(16, 16)
    hook = both.network.pos_embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    maps = both.teach(pictures, StepRandom(3, 0, 0, 1)).features[0]
    hook.remove()
    with torch.no_grad():
        network(seen[0], timestep=torch.tensor([40, 40]), class_labels=torch.tensor([3, 3]))
    torch.testing.assert_close(maps, torch.cat(seen[1:], 2).transpose(1, 2).reshape(2, 32, 2, 2), rtol=1e-4, atol=1e-5)


def test_classes_of_a_unet_become_their_mean(tmp_path: Path) -> None:
    pixels(tmp_path)
    unet = UNet2DModel.from_config(dict(UNet2DModel.load_config(tmp_path / "source/unet")) | {"num_class_embeds": 3})
    unet.save_pretrained(tmp_path / "source/unet")
    import_teacher("diffusers", str(tmp_path / "source"), tmp_path / "teacher", [])
    assert read_facts(tmp_path / "teacher")["class"] == "mean"
    teacher: Any = open_teacher(tmp_path / "teacher", None, AT_40)
    mean = unet.class_embedding.weight.mean(0).detach()
    unet.class_embedding.weight.data[:] = mean
    x, t = torch.rand(1, 3, 16, 16), torch.tensor([5])
    with torch.no_grad():
        expected = unet.eval()(x, t, class_labels=torch.tensor([1])).sample
        torch.testing.assert_close(teacher.predict_noise(x, t), expected, rtol=1e-4, atol=1e-5)


def test_a_network_beside_its_scheduler_is_a_source_as_old_repositories_are(tmp_path: Path) -> None:
    pixels(tmp_path)
    source = tmp_path / "source"
    for folder in ("unet", "scheduler"):
        for file in (source / folder).iterdir():
            file.rename(source / file.name)
        (source / folder).rmdir()
    import_teacher("diffusers", str(source), tmp_path / "one", [])
    (source / "model_index.json").unlink()
    import_teacher("diffusers", str(source), tmp_path / "two", [])
    assert read_facts(tmp_path / "one") == read_facts(tmp_path / "two")


@pytest.mark.parametrize("flat", [False, True])
def test_a_hub_id_is_a_source(flat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one that lies in the hub's cache, without a network."""
    pixels(tmp_path)
    snapshot = tmp_path / "hub/models--org--pixels/snapshots" / ("0" * 40)
    shutil.copytree(tmp_path / "source", snapshot)
    (tmp_path / "hub/models--org--pixels/refs").mkdir()
    (tmp_path / "hub/models--org--pixels/refs/main").write_text("0" * 40)
    if flat:
        for file in [*snapshot.glob("unet/*"), *snapshot.glob("scheduler/*")]:
            file.rename(snapshot / file.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    import_teacher("diffusers", "org/pixels", tmp_path / "teacher", [])
    import_teacher("diffusers", str(tmp_path / "source"), tmp_path / "local", [])
    a, b = (load_file(tmp_path / name / "network/diffusion_pytorch_model.safetensors") for name in ("teacher", "local"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert read_facts(tmp_path / "teacher")["source"] == "org/pixels"
    with pytest.raises(UserError, match="org/other is neither a folder nor a model of a hub that can be reached"):
        import_teacher("diffusers", "org/other", tmp_path / "none", [])


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_what_cannot_teach_is_refused_in_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def refused(name: str, line: str, spoil: Any = None, more: tuple[str, ...] = ()) -> None:
        folder = tmp_path / f"case{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        options = MODELS[name](folder)
        if spoil:
            spoil(folder / "source")
        with pytest.raises(UserError, match=line) as caught:
            import_teacher("diffusers", str(folder / "source"), folder / "out/teacher", [*options, *more])
        assert "\n" not in str(caught.value)
        assert not (folder / "out").exists() or not list((folder / "out").iterdir())

    def lose(source: Path) -> None:
        file = source / "unet/diffusion_pytorch_model.safetensors"
        save_file({key: value for key, value in load_file(file).items() if not key.startswith("mid_block")}, file)

    def halve(source: Path) -> None:
        file = source / "unet/diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:200])

    def inpaint(source: Path) -> None:
        text_unet(24, in_channels=9, attention_head_dim=4).save_pretrained(source / "unet")

    def edm(source: Path) -> None:
        diffusers.EDMEulerScheduler().save_pretrained(source / "scheduler")

    def another(source: Path) -> None:
        change(source / "model_index.json", unet=["diffusers", "PriorTransformer"])

    def forget_the_autoencoder(source: Path) -> None:
        index = json.loads((source / "model_index.json").read_text())
        (source / "model_index.json").write_text(json.dumps({key: value for key, value in index.items() if key != "vae"}))

    refused("pixels", "unet of .* lacks .* weights, such as mid_block", lose)
    refused("pixels", r"unet of .* cannot be read \(.*\); fetch it again", halve)
    refused("pixels", "has no scheduler, which says how noisy each step is", lambda s: (s / "scheduler/scheduler_config.json").unlink())
    refused(
        "pixels",
        "has a EDMEulerScheduler, which has no discrete noise steps",
        lambda s: diffusers.EDMEulerScheduler().save_pretrained(s / "scheduler"),
    )
    refused("pixels", "option class=1 does not fit a network without classes", more=("class=1",))
    refused("pixels", "there is no --option prompt", more=("prompt=a cat",))
    refused("stable_diffusion_1", "has a network of 9 input channels, not 4: it also takes a picture or a mask", inpaint)
    refused("stable_diffusion_1", r"is a UNet2DConditionModel without an autoencoder \(vae\)", forget_the_autoencoder)
    refused("stable_diffusion_1", "has no network that can teach: UNet2DModel, .* can, it has .*AutoencoderKL, PriorTransformer", another)
    refused("dit", "--option class=10 is none of none, and 0 to 9", more=("class=10",))
    refused("dit", "--option blocks=1,3 are no different numbers from 0 to 2, separated by commas", more=("blocks=1,3",))
    (tmp_path / "empty").mkdir()
    for name, line in (("empty", r"is no folder with model_index\.json"), ("nothing", "is neither a folder nor a model of a hub")):
        with pytest.raises(UserError, match=line):
            import_teacher("diffusers", str(tmp_path / name), tmp_path / "none", [])


def test_prompts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    MODELS["stable_diffusion_xl"](tmp_path)
    file = tmp_path / "prompt.safetensors"
    for tensors, line in (
        ({"prompt_embeds": (1, 7, 24)}, "takes prompt_embeds of 32 channels, not of 24; give those of its own text encoders"),
        ({"prompt_embeds": (7, 32)}, "takes pooled_prompt_embeds of 20 channels, not of None"),
        ({"embedding": (1, 7, 32)}, "has no tensor prompt_embeds"),
        ({"prompt_embeds": (2, 7, 32)}, "has embeddings of several prompts"),
    ):
        save_file({name: torch.ones(shape) for name, shape in tensors.items()}, file)
        with pytest.raises(UserError, match=line):
            import_teacher("diffusers", str(tmp_path / "source"), tmp_path / "out", [f"prompt_embedding={file}"])


def test_without_transformers_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MODELS["stable_diffusion_1"](tmp_path)
    monkeypatch.setattr(diffusers.utils, "is_transformers_available", lambda: False)
    with pytest.raises(UserError, match=r"needs transformers; run `pip install transformers`, or give --option prompt_embedding=FILE"):
        import_teacher("diffusers", str(tmp_path / "source"), tmp_path / "out", [])


def test_a_hostile_pickle_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "was run"

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    pixels(tmp_path)
    (tmp_path / "source/unet/diffusion_pytorch_model.safetensors").unlink()
    for write in (torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))):
        write({"conv_in.weight": Hostile()}, tmp_path / "source/unet/diffusion_pytorch_model.bin")
        with pytest.raises(UserError, match=r"unet of .* cannot be read") as caught:
            import_teacher("diffusers", str(tmp_path / "source"), tmp_path / "out", [])
        assert "\n" not in str(caught.value)
        assert not mark.exists()


@pytest.mark.parametrize(
    "file", ["network/config.json", "network/diffusion_pytorch_model.safetensors", "autoencoder/config.json", "prompt.safetensors"]
)
def test_a_damaged_folder_is_refused_in_one_line(file: str, tmp_path: Path) -> None:
    taught("stable_diffusion_1", tmp_path)
    content = (tmp_path / "teacher" / file).read_bytes()
    (tmp_path / "teacher" / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"is damaged|is no checkpoint") as caught:
        open_teacher(tmp_path / "teacher", None, AT_40)
    assert "\n" not in str(caught.value)


def test_the_empty_prompt_is_embedded_by_the_pipelines_own_text_encoder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    MODELS["stable_diffusion_1"](tmp_path)
    sizes = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
    encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**sizes, max_position_embeddings=7, bos_token_id=0, eos_token_id=1)
    ).eval()
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "c</w>": 2, "a</w>": 3}
    tokenizer = transformers.CLIPTokenizerFast(tokenizer_object=Tokenizer(models.BPE(words, [])), model_max_length=7)
    encoder.save_pretrained(tmp_path / "source/text_encoder")
    tokenizer.save_pretrained(tmp_path / "source/tokenizer")
    change(
        tmp_path / "source/model_index.json",
        tokenizer=["transformers", "CLIPTokenizer"],
        safety_checker=[None, None],
        feature_extractor=[None, None],
    )
    import_teacher("diffusers", str(tmp_path / "source"), tmp_path / "teacher", [])
    embedded = load_file(tmp_path / "teacher/prompt.safetensors")["prompt_embeds"]
    assert embedded.shape == (1, 7, 24)
    assert read_facts(tmp_path / "teacher")["prompt"] == ""
    assert not (tmp_path / "teacher/text_encoder").exists()
    open_teacher(tmp_path / "teacher", None, AT_40).teach(images(), StepRandom(3, 0, 0, 1))


def test_the_original_dit_is_recognised_by_its_old_name(tmp_path: Path) -> None:
    MODELS["dit"](tmp_path)
    change(tmp_path / "source/model_index.json", transformer=["diffusers", "Transformer2DModel"])
    change(tmp_path / "source/transformer/config.json", _class_name="Transformer2DModel")
    import_teacher("diffusers", str(tmp_path / "source"), tmp_path / "teacher", [])
    assert isinstance(open_teacher(tmp_path / "teacher", None, AT_40).network, DiTTransformer2DModel)  # type: ignore[attr-defined]
