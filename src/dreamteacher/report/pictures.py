"""Pictures inside a page, as many as it may hold."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

WIDEST = 1600  # pixels; a page shows no more
QUALITY = 82  # of WebP, which every browser shows and which takes a fifth of the bytes of PNG


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with its size in pixels and what it shows."""

    uri: str
    width: int
    height: int
    words: str


@dataclass
class Album:
    """Takes pictures until `room` bytes of the page are used, and counts those that it leaves out."""

    room: int
    left_out: list[Path] = field(default_factory=list)

    def take(self, path: Path, words: str) -> Picture | None:
        """The picture of a PNG file of ours, reduced to WIDEST; None where no room is left for it."""
        with Image.open(path) as image:
            picture = image.convert("RGB")
        if picture.width > WIDEST:
            picture = picture.resize((WIDEST, max(1, round(picture.height * WIDEST / picture.width))), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        picture.save(out, format="WEBP", quality=QUALITY, method=4)
        uri = f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
        if len(uri) > self.room:
            self.left_out.append(path)
            return None
        self.room -= len(uri)
        return Picture(uri, *picture.size, words)

    def take_all(self, paths: list[Path], words: str) -> list[Picture]:
        """Those of `paths` that there is room for; each shows `words` and its number, from 1."""
        taken = [self.take(path, f"{words} {number}") for number, path in enumerate(paths, 1)]
        return [picture for picture in taken if picture]
