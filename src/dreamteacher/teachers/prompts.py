"""Embeddings of the prompt of a text-to-image model, the same for every picture; computed once, so no text encoder is needed later."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dreamteacher.errors import UserError, first_line

PROMPT_FILE = "prompt.safetensors"
KEYS = ("prompt_embeds", "pooled_prompt_embeds")


def read_embedding(content: Any, where: str) -> dict[str, Tensor]:
    """`prompt_embeds` `(1, L, D)` and, if present, `pooled_prompt_embeds` `(1, P)`, in diffusers' format.

    Raises:
        UserError: there is none.
    """
    tensors = {key: content[key].float() for key in KEYS if isinstance(content, dict) and isinstance(content.get(key), Tensor)}
    if "prompt_embeds" not in tensors:
        raise UserError(f"{where} has no tensor prompt_embeds, (1, tokens, channels), as a pipeline's encode_prompt returns it")
    ends = {key: value.shape[-2 if key == "prompt_embeds" else -1 :] for key, value in tensors.items()}
    if any(value.numel() != ends[key].numel() for key, value in tensors.items()):
        raise UserError(f"{where} has embeddings of several prompts; give those of one")
    return {key: value.reshape(1, *ends[key]) for key, value in tensors.items()}


@torch.no_grad()
def embed_prompt(source: str, index: dict[str, Any], prompt: str, more: dict[str, str]) -> dict[str, Tensor]:
    """Embed with the text encoders of the pipeline in `source`, whose model_index.json is `index`; an optional T5 is not used.

    Raises:
        UserError: transformers is not installed, or the pipeline has no text encoder that can be read.
    """
    import diffusers

    instead = "or give --option prompt_embedding=FILE, see docs/teachers.md"
    if not diffusers.utils.is_transformers_available():
        raise UserError(f"the text encoder of {source} needs transformers; run `pip install transformers`, {instead}")
    name = index.get("_class_name")
    pipeline_class: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not hasattr(pipeline_class, "encode_prompt") or "text_encoder" not in index:
        raise UserError(f"{source} has no text encoder; name the whole pipeline, {instead}")
    kept = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    left_out = {part: None for part in index if not part.startswith("_") and part not in kept and isinstance(index[part], (list, tuple))}
    try:
        pipeline = pipeline_class.from_pretrained(source, **left_out, **more).to(torch.float32)
        how = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        embedded = pipeline.encode_prompt(prompt, **how, **_other_prompts(name, prompt))
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"the text encoder of {source} cannot be read ({first_line(error)}); repair it, {instead}") from error
    parts = dict(zip(KEYS, (embedded[0], embedded[2] if len(embedded) > 2 else None), strict=True))
    return {key: value.float() for key, value in parts.items() if value is not None}


def _other_prompts(name: Any, prompt: str) -> dict[str, str]:
    """Arguments for pipelines with several text encoders: the prompt for each."""
    return {"StableDiffusion3Pipeline": {"prompt_2": prompt, "prompt_3": prompt}}.get(name, {})
