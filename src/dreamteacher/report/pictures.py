"""Pictures embedded in a page, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

MAX_WIDTH = 1600  # pixels; wider pictures are downscaled
QUALITY = 82  # of WebP, a fifth of the size of PNG


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with its size in pixels and its caption."""

    uri: str
    width: int
    height: int
    words: str


@dataclass
class Album:
    """Embeds pictures until `remaining_bytes` are used; further ones are listed in `left_out`."""

    remaining_bytes: int
    left_out: list[Path] = field(default_factory=list)

    def add(self, path: Path, words: str) -> Picture | None:
        """Embed a PNG file, downscaled to MAX_WIDTH; None if it exceeds the budget."""
        with Image.open(path) as image:
            picture = image.convert("RGB")
        if picture.width > MAX_WIDTH:
            picture = picture.resize((MAX_WIDTH, max(1, round(picture.height * MAX_WIDTH / picture.width))), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        picture.save(out, format="WEBP", quality=QUALITY, method=4)
        uri = f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
        if len(uri) > self.remaining_bytes:
            self.left_out.append(path)
            return None
        self.remaining_bytes -= len(uri)
        return Picture(uri, *picture.size, words)

    def add_all(self, paths: list[Path], words: str) -> list[Picture]:
        """Embed those of `paths` that fit the budget, captioned `words` and their number, from 1."""
        taken = [self.add(path, f"{words} {number}") for number, path in enumerate(paths, 1)]
        return [picture for picture in taken if picture]
