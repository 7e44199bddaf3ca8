"""Diffusion models in diffusers format, in a folder or on the model hub: kind `diffusers`.

U-Nets in pixels, latent diffusion with U-Nets or transformers. Weights are read without executing code from the source.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from dreamteacher.errors import UserError, first_line
from dreamteacher.teachers.base import Teacher
from dreamteacher.teachers.diffusion import DiffusionTeacher, decoder_taps
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.teachers.folder import damaged, read_facts, write_facts
from dreamteacher.teachers.importing import check_options, read_checkpoint
from dreamteacher.teachers.latent import Latents, LatentTeacher, latent_stride
from dreamteacher.teachers.prompts import PROMPT_FILE, embed_prompt, read_embedding
from dreamteacher.teachers.transformer import DiTTeacher, FlowTeacher, flow_schedule, token_tap
from dreamteacher.teachers.unet import class_embedding, read_scheduler

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

ALIASES = {"Transformer2DModel": "DiTTransformer2DModel"}  # as in DiT's own repositories
NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "SD3Transformer2DModel")
AUTOENCODERS = ("AutoencoderKL", "VQModel")
OPTIONS = {  # beside revision and variant
    "UNet2DModel": ("class",),
    "UNet2DConditionModel": ("prompt", "prompt_embedding"),
    "DiTTransformer2DModel": ("class", "blocks"),
    "SD3Transformer2DModel": ("prompt", "prompt_embedding", "blocks"),
}
SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type", "rescale_betas_zero_snr")


def import_weights(source: str, out: Path, options: dict[str, str]) -> None:
    """Write network, autoencoder, noise schedule and prompt.

    Args:
        source: folder or hub id, of a pipeline or of a UNet2DModel alone.
        out: an empty folder.
        options: `revision` and `variant` of the source; `prompt`, by default the empty one, or `prompt_embedding`, a .safetensors file
            (see `prompts.read_embedding`); `class` ("mean", "none" or a number for a U-Net, see `unet.class_embedding`; a number or
            "none", its null class, for a DiT); `blocks` of a transformer, such as "9,14", by default the middle one.

    Raises:
        UserError: the source cannot be read, is of another kind, or an option does not fit.
    """
    at = _Source(source, {key: options[key] for key in ("revision", "variant") if key in options})
    name, place = at.find(NETWORKS, "network")
    check_options(options, ("revision", "variant", *OPTIONS[name]))
    network = at.load(name, place)
    autoencoder, scheduler = None, at.scheduler(flow=name == "SD3Transformer2DModel")
    if any(part in at.index for part in ("vae", "vqvae")):
        autoencoder = at.load(*at.find(AUTOENCODERS, "autoencoder"))
        autoencoder.save_pretrained(out / "autoencoder", safe_serialization=True)
    _check(network, autoencoder, source, name)
    facts: dict[str, Any] = {"model": name, "autoencoder": type(autoencoder).__name__ if autoencoder else None}
    facts["steps"] = scheduler.config.num_train_timesteps
    stride = latent_stride(autoencoder.config) if autoencoder else 1
    if name.startswith("UNet2D"):
        taps = decoder_taps(network, stride)
    else:
        facts["blocks"] = _blocks(options.get("blocks"), network.config.num_layers)
        taps = [token_tap(network.config, facts["blocks"], stride)]
    if name == "UNet2DModel":
        facts["class"] = _fold_classes(network, options.get("class"))
    if name == "DiTTransformer2DModel":
        facts["class"] = _label(options.get("class", "none"), network.config.num_embeds_ada_norm)
    if "prompt" in OPTIONS[name]:
        if file := options.get("prompt_embedding"):
            prompt = read_embedding(read_checkpoint(Path(file)), file)
        else:
            prompt = embed_prompt(source, at.index, options.get("prompt", ""), at.more)
            facts["prompt"] = options.get("prompt", "")
        _check_prompt(prompt, network.config, file or source)
        save_file({key: value.contiguous() for key, value in prompt.items()}, out / PROMPT_FILE)
    network.save_pretrained(out / "network", safe_serialization=True)
    scheduler.save_pretrained(out / "scheduler")
    side = network.config.sample_size
    facts |= {"multiple": taps[-1].stride, "resolution": side * stride if isinstance(side, int) else None, "trained_on": None}
    write_facts(out, "diffusers", taps, facts)


def open_folder(folder: Path, strides: list[int] | None, encoding: Encoding) -> Teacher:
    """See `folder.open_teacher`."""
    facts, scheduler = read_facts(folder), read_scheduler(folder)
    network = _read(facts["model"], folder, "network")
    if not facts["autoencoder"]:
        return DiffusionTeacher(network, scheduler, encoding, strides)
    parts = (network, scheduler, encoding, strides, Latents(_read(facts["autoencoder"], folder, "autoencoder")))
    prompt = read_embedding(read_checkpoint(folder / PROMPT_FILE), str(folder)) if (folder / PROMPT_FILE).exists() else {}
    if facts["model"] == "DiTTransformer2DModel":
        return DiTTeacher(*parts, blocks=facts["blocks"], label=facts["class"])
    if facts["model"] == "SD3Transformer2DModel":
        return FlowTeacher(*parts, blocks=facts["blocks"], prompt=prompt)
    return LatentTeacher(*parts, prompt=prompt)


class _Source:
    """A pipeline, or a network alone, in a folder or on the hub."""

    def __init__(self, source: str, more: dict[str, str]):
        self.source, self.more = source, more
        self.local = Path(source).exists()
        try:
            if self.local and not (Path(source) / "model_index.json").exists():
                raise OSError
            self.index = self._config("DiffusionPipeline", "")
        except OSError:  # no pipeline; then a network alone
            try:
                self.index = {"unet": ["diffusers", self._config("UNet2DModel", "")["_class_name"]]}
            except OSError as error:
                what = "no folder with model_index.json" if self.local else "neither a folder nor a model of a hub that can be reached"
                raise UserError(f"{source} is {what} ({first_line(error)})") from error

    def _config(self, name: str, place: str) -> dict[str, Any]:
        revision = {key: value for key, value in self.more.items() if key == "revision"}
        return cast(dict[str, Any], _class(name).load_config(self.source, subfolder=place or None, **revision))

    def _places(self, part: str) -> list[str]:
        """Candidate paths of a component: its own subfolder or, in old repositories, beside model_index.json."""
        return [part, ""] if not self.local else [part if (Path(self.source) / part).is_dir() else ""]

    def find(self, usable: tuple[str, ...], what: str) -> tuple[str, str]:
        """Class and name of the component whose class is among `usable`.

        Raises:
            UserError: there is none.
        """
        parts = {part: entry[1] for part, entry in self.index.items() if isinstance(entry, (list, tuple)) and len(entry) == 2 and entry[1]}
        for part, name in parts.items():
            if ALIASES.get(name, name) in usable:
                return ALIASES.get(name, name), part
        raise UserError(f"{self.source} has no {what} that can teach: {', '.join(usable)} can, it has {', '.join(parts.values())}")

    def load(self, name: str, part: str) -> Any:
        """A component in float32; all its weights must be present.

        Raises:
            UserError: it cannot be read, or lacks weights.
        """
        for place in self._places(part):
            options = {"subfolder": place or None, "torch_dtype": torch.float32, **self.more}
            try:
                model, found = _class(name).from_pretrained(self.source, **options, output_loading_info=True)
                break
            except (OSError, ValueError, KeyError, RuntimeError, TypeError) as caught:
                error = caught
        else:
            raise UserError(f"{part} of {self.source} cannot be read ({first_line(error)}); fetch it again") from error
        if wrong := [*found["missing_keys"], *found["mismatched_keys"]]:
            raise UserError(f"{part} of {self.source} lacks {len(wrong)} weights, such as {wrong[0]}; fetch it again")
        return model

    def scheduler(self, flow: bool) -> DDPMScheduler:
        """The noise schedule that the network was trained with, whatever sampler the pipeline names."""
        from diffusers import DDPMScheduler

        for place in self._places("scheduler"):
            try:
                config = self._config("DDPMScheduler", place)
                break
            except OSError as caught:
                error = caught
        else:
            raise UserError(f"{self.source} has no scheduler, which says how noisy each step is ({first_line(error)})") from error
        if flow:
            return flow_schedule(int(config.get("num_train_timesteps", 1000)))
        if "beta_start" not in config and not config.get("trained_betas"):
            raise UserError(f"{self.source} has a {config.get('_class_name')}, which has no discrete noise steps; such do not teach yet")
        return DDPMScheduler(**{key: config[key] for key in SCHEDULE if key in config}, clip_sample=False)


def _read(name: str, folder: Path, place: str) -> Any:
    if name not in (*NETWORKS, *AUTOENCODERS):
        raise damaged(folder, ValueError(f"no model is called {name!r}"))
    try:
        return _class(name).from_pretrained(folder / place, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise damaged(folder, error) from error


def _class(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


def _check(network: Any, autoencoder: Any, source: str, name: str) -> None:
    """Raises UserError if the network needs further inputs, or has no plain decoder."""
    config, inputs = network.config, int(network.config.in_channels)
    if autoencoder is None and name != "UNet2DModel":
        raise UserError(f"{source} is a {name} without an autoencoder (vae), whose latents it denoises; name the whole pipeline")
    wanted = int(autoencoder.config.latent_channels) if autoencoder else 3
    if inputs != wanted:
        why = "it also takes a picture or a mask" if inputs > wanted else "it is of another colour space"
        raise UserError(f"{source} has a network of {inputs} input channels, not {wanted}: {why}; take the model without that condition")
    conditions = {key: config.get(key) for key in ("class_embed_type", "encoder_hid_dim_type")}
    conditions["num_class_embeds"] = config.get("num_class_embeds") if name == "UNet2DConditionModel" else None
    conditions["addition_embed_type"] = None if config.get("addition_embed_type") == "text_time" else config.get("addition_embed_type")
    for key, value in conditions.items():
        if value:
            raise UserError(f"{source} has a network with {key} = {value!r}, a condition that no picture has by itself; take another model")
    if not name.startswith("UNet2D"):
        return
    if config.get("time_embedding_type") == "fourier":
        raise UserError(f"{source} is conditioned on noise levels (time_embedding_type = 'fourier'), not on steps; such do not teach yet")
    plain = all(hasattr(block, "resnets") and not hasattr(block, "resnet_up") for block in network.up_blocks)
    ups = [bool(getattr(block, "upsamplers", None)) for block in network.up_blocks]
    if not plain or ups != [True] * (len(ups) - 1) + [False]:
        raise UserError(
            f"{source} has up blocks {list(config.up_block_types)}, not all of which double the resolution; such do not teach yet"
        )


def _fold_classes(unet: Any, choice: str | None) -> str | None:
    """Make `unet` unconditional by adding a class embedding to the time embedding; returns the chosen class."""
    table = unet.class_embedding
    if table is None:
        if choice:
            raise UserError(f"--option class={choice} does not fit a network without classes")
        return None
    with torch.no_grad():
        unet.time_embedding.linear_2.bias += class_embedding(table.weight, choice or "mean")
    unet.class_embedding = None
    unet.register_to_config(num_class_embeds=None)
    return choice or "mean"


def _label(choice: str, classes: int) -> int:
    """The id of a DiT's class; the null class of classifier-free guidance follows the last class."""
    if choice == "none":
        return classes
    if not choice.isdecimal() or int(choice) >= classes:
        raise UserError(f"--option class={choice} is none of none, and 0 to {classes - 1}")
    return int(choice)


def _blocks(text: str | None, count: int) -> list[int]:
    if text is None:
        return [count // 2]
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) < count for part in parts) or len(set(parts)) < len(parts):
        raise UserError(f"--option blocks={text} are no different numbers from 0 to {count - 1}, separated by commas")
    return sorted(int(part) for part in parts)


def _check_prompt(prompt: dict[str, Tensor], config: Any, where: str) -> None:
    """Raises UserError if the embedding does not have the width that the network needs."""
    pooled = config.get("pooled_projection_dim")
    if config.get("addition_embed_type") == "text_time":  # plus six numbers for the picture's sizes
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    takes = {"prompt_embeds": config.get("joint_attention_dim") or config.get("cross_attention_dim"), "pooled_prompt_embeds": pooled}
    for key, wanted in takes.items():
        found = prompt[key].shape[-1] if key in prompt else None
        if wanted and found != wanted:
            raise UserError(f"{where}: the network takes {key} of {wanted} channels, not of {found}; give those of its own text encoders")
