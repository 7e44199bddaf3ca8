"""The origin of a picture by its name: the original of augmented copies, a video, a patient."""

from __future__ import annotations

import posixpath
import re

from dreamteacher.data.layout import meaning

_ROBOFLOW = re.compile(r"(.+)\.rf\.[0-9a-f]{32}$", re.IGNORECASE)  # each augmented copy has its own hash
_FRAME = re.compile(r"(.*[a-z0-9])[-_. ]*frames?[-_. ]*\d+$", re.IGNORECASE)
_NUMBERED = re.compile(
    r"(?<![a-z])(patient|case|subject|slide|video|vid|clip|seq|sequence|scene|session|scan|volume)[-_ ]?\d+", re.IGNORECASE
)
LIKE = (  # SQL patterns of names that may contain an origin
    *("%.rf.%", "%frame%", "%patient%", "%case%", "%subject%", "%slide%", "%vid%", "%clip%", "%seq%", "%scene%", "%session%", "%scan%"),
    "%volume%",
)


def origin_of(name: str) -> str | None:
    """`IMG_jpg` for IMG_jpg.rf.HASH.jpg, `v1` for v1_frame_0007.jpg, `a/video` for train/a/video_frame_7.jpg, `patient07` for
    patient07/12.png; None for other names."""
    stem = posixpath.splitext(posixpath.basename(name))[0]
    if found := _ROBOFLOW.match(stem):
        return found[1].lower()
    if found := _FRAME.match(stem):
        has_number = re.search(r"\d", found[1])
        return found[1].lower() if has_number else "/".join([*_folders(name), found[1]]).lower()
    numbered = _NUMBERED.search(posixpath.splitext(name)[0])
    return numbered[0].lower() if numbered else None


def _folders(name: str) -> list[str]:
    """Folders of the path without splits, picture and mask folders."""
    return [part for part in name.split("/")[:-1] if meaning(part).split is None and not meaning(part).role]
