"""Naming conventions of splits, picture and mask folders and files, as used by people and public data sets.

Names are split into words (`SegmentationClassPNG`, `train_images`, `valannot`), so that no data set needs a special case.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

# Words of splits. "val?" is used as val if no folder is named val, and left out like test otherwise.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("dev", "devel", "development", "eval", "evaluate", "evaluation", "holdout"), "val?"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
SHORT_SPLITS = {"tr": "train", "ts": "test"}  # only with a word for pictures or masks: imagesTr

IMAGE_WORDS = {"image", "images", "img", "imgs"}  # never class names
# Picture folders if masks lie beside them, else possibly classes.
WEAK_IMAGE_WORDS = {
    "rgb", "input", "inputs", "frame", "frames", "photo", "photos", "picture", "pictures", "pic", "pics", "left", "ortho", "sat",
    "satellite", "original", "originals", "orig", "raw", "still", "stills", "scan", "scans", "tile", "tiles", "patch", "patches",
    "slice", "slices",
}  # fmt: skip
# With a number: one folder per item (scan1/image.png and masks/scan1/1.png) or a folder of all pictures (tile_512/1.png, mask_512/1.png).
ITEM_WORDS = {"frame", "photo", "picture", "pic", "still", "scan", "tile", "patch", "slice"}
FORMAT_WORDS = {"jpg", "jpeg", "png", "tif", "tiff", "bmp"}  # alone as weak as WEAK_IMAGE_WORDS, ignored beside other words
MASK_WORDS = {"masks", "annot"}  # never pictures
# Mask folders if one of the masks matches a picture, else possibly classes.
WEAK_MASK_WORDS = {
    "mask", "label", "labels", "lbl", "gt", "gts", "groundtruth", "target", "targets", "output", "outputs", "semantic", "semantics",
    "sem", "seg", "segs", "segm", "segmentation", "segmentations", "segmap", "segmaps", "ann", "anns", "anno", "annos", "annots",
    "annotation", "annotations", "trimap", "trimaps", "stuffthingmaps", "pixelmaps", "labelids", "manual", "groundtruths",
}  # fmt: skip
# Files beside masks that are neither pictures nor class masks.
EXTRA_WORDS = {
    "instance", "instances", "instanceids", "panoptic", "overlay", "overlays", "vis", "viz", "visual", "visuals", "visualization",
    "visualizations", "visualisation", "visualisations", "colormap", "colormaps", "preview", "previews", "polygons", "depth", "depths",
    "disparity", "disparities", "normals",
}  # fmt: skip
COLOUR_WORDS = {
    "color",
    "colors",
    "colored",
    "colour",
    "colours",
    "coloured",
    "object",
    "objects",
    "human",
}  # extra files if beside a word for masks
FILLERS = {
    "dir", "folder", "set", "data", "files", "file", "split", "all", "full", "final", "fine", "coarse", "class", "classes", "id", "ids",
    "aug", "machine", "bit", "map", "maps", "st", "nd", "rd",
}  # fmt: skip
WORDS = set().union(SPLIT_WORDS, IMAGE_WORDS, WEAK_IMAGE_WORDS, FORMAT_WORDS, MASK_WORDS, WEAK_MASK_WORDS, EXTRA_WORDS, FILLERS)
STRONG_MASK_FOLDERS = {  # letters only: mask folders though each word alone is weak or unknown
    "segmentationclass", "segmentationclassaug", "segmentationclasspng", "segmentationclassraw", "gtfine", "gtcoarse", "anndir",
    "labelstr", "labelsts", "labeledapprovedfull", "stuffthingmaps", "maskpng",
}  # fmt: skip
WITH_LABELS = {"labelled", "labeled"}  # a folder around class folders, beside one of names.UNLABELLED
# In the path of pictures or of masks only: BDD100K's images/10k, Mapillary's v1.2/labels.
SILENT_FOLDERS = {"10k", "100k", "v1.2", "v2.0"}

# Suffixes of file names after one of ._-, case-insensitive.
IMAGE_TAILS = r"leftimg8bit|sat|rgb|irrg|image|img|im|raw|orig|original|0000|(?<=\d_)training|(?<=\d_)test"  # the last two: DRIVE
MASK_TAILS = (
    "labeltrainids|labelids|mask|masks|msk|seg|segm|segmentation|label|labels|lab|gt|groundtruth|annotation|annot|trimap|manual[12]?"
)
IN_MASK_FOLDERS = "l|lbl|m|jpg|jpeg|png|tif|tiff"  # CamVid; tools that append .png to the name of the picture
EXTRA_TAILS = (
    r"colou?rs?|instanceids|instancetrainids|instances?(?:[._-]?\d+)?|polygons|vis|viz|overlay|preview|panoptic|label_?noboundary"
    r"|parts_?\d*|depth|disparity"
)
_BEHIND = r"^(.+?)(?:[._-](?:gtfine|gtcoarse))?[._-]({})$"
_IMAGE_TAIL = re.compile(_BEHIND.format(IMAGE_TAILS), re.IGNORECASE)
_MASK_TAIL = re.compile(_BEHIND.format(f"(?:{MASK_TAILS})(?:[._-]?\\d+)?"), re.IGNORECASE)  # 1_mask_7: mask of one object
_TAIL_IN_MASKS = re.compile(_BEHIND.format(f"{MASK_TAILS}|{IN_MASK_FOLDERS}"), re.IGNORECASE)
# Prefixes of file names: img_1.jpg and mask_1.png, also img1.jpg and mask1.png; or entire names: 1/img.jpg, 1/mask.png.
_HEAD = r"^(?:{})(?:(?:[._-]|(?=\d))(.+))?$"
_IMAGE_HEAD = re.compile(_HEAD.format("img|image|im|rgb|sat|orig|original|photo|input|frame"), re.IGNORECASE)
_MASK_HEAD = re.compile(_HEAD.format("mask|masks|msk|label|labels|gt|seg|groundtruth|annotation|annot|target"), re.IGNORECASE)
_EXTRA_TAIL = re.compile(_BEHIND.format(EXTRA_TAILS), re.IGNORECASE)


class Meaning(NamedTuple):
    """The meaning of a folder's name.

    role: "image", "image?" (if masks lie beside it), "mask", "mask?" (if a mask in it matches a picture), "extra" (neither), "extra?"
    (neither, if there are masks), or "". split: "train", "val", "val?", "test", "trainval" (train, unless a subfolder names a split), ""
    for several splits (a parent of split folders); None if it names none. rank: priority among several masks of a picture, lowest first;
    negative ones are paired before all others. sure: all words are known.
    """

    role: str = ""
    split: str | None = None
    rank: int = 0
    sure: bool = True


@lru_cache(maxsize=4096)
def meaning(folder: str) -> Meaning:
    """The Meaning of a folder's name."""
    if folder.lower() in SILENT_FOLDERS:
        return Meaning("image?")
    if folder.lower() in WITH_LABELS:
        return Meaning("", "")
    words = _words(folder)
    known, ours = set(words), [word for word in words if word in WORDS]
    strange = [word for word in words if word not in WORDS and word not in SHORT_SPLITS and word not in COLOUR_WORDS]
    role, rank = "", 0
    letters = re.sub(r"[\W\d_]", "", folder).lower()
    if letters in STRONG_MASK_FOLDERS or known & (MASK_WORDS | WEAK_MASK_WORDS):
        strong = letters in STRONG_MASK_FOLDERS or (known & MASK_WORDS and not strange)
        rank = 2 * (not strong and bool(strange)) + ("coarse" in known or "aug" in known)
        if "manual" in known:  # DRIVE: mask/ beside it is the field of view; the first observer has priority
            rank = -2 if "st" in known else -1
        role = "extra" if known & (EXTRA_WORDS | COLOUR_WORDS) or words[-1] == "rgb" else "mask" if strong else "mask?"
    elif known & EXTRA_WORDS and not strange:
        role = "extra?"
    elif known & IMAGE_WORDS and not strange:
        role = "image"
    elif is_item(folder):
        role = ""
    elif known & (IMAGE_WORDS | WEAK_IMAGE_WORDS) or (words and set(words) <= FORMAT_WORDS):
        role = "image?"
    splits = {SPLIT_WORDS[word] for word in ours if word in SPLIT_WORDS}
    if role:
        splits |= {SHORT_SPLITS[word] for word in known & set(SHORT_SPLITS)}
    if not splits or (strange and not role):  # pregnancy_test is not a split, Training_Input_2018 is one
        return Meaning(role, None, rank, not strange)
    split = splits.pop() if len(splits) == 1 else "trainval" if "test" not in splits else ""
    return Meaning(role, split, rank, not strange)


@lru_cache(maxsize=4096)
def is_item(folder: str) -> bool:
    """Whether a folder may be that of one item, such as scan1; see ITEM_WORDS."""
    words = _words(folder)
    return bool(words) and ITEM_WORDS.issuperset(words) and bool(re.search(r"\d", folder))


def split_and_rest(folder: str) -> tuple[str, tuple[str, ...]] | None:
    """(split, other words) of a name with exactly one word for a split; else None."""
    words = _words(folder)
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return (splits.pop(), tuple(word for word in words if word not in SPLIT_WORDS)) if len(splits) == 1 else None


def without_image_tail(stem: str) -> str | None:
    """The stem without a word for pictures: `1` for `1_sat`, `img_1` and `img1`, "" for `img`; None without such a word."""
    found = _IMAGE_TAIL.match(stem) or _IMAGE_HEAD.match(stem)
    return found[1] or "" if found else None


def without_mask_tail(stem: str, in_mask_folder: bool) -> tuple[str, int] | None:
    """(stem without a word for masks, rank): `1` for `1_mask`, `mask_1` and `mask1`, "" for `mask`; None without such a word."""
    if found := (_TAIL_IN_MASKS if in_mask_folder else _MASK_TAIL).match(stem):
        return found[1], int(found[2].lower() == "labelids")
    return (found[1] or "", 0) if (found := _MASK_HEAD.match(stem)) else None


def without_extra_tail(stem: str) -> str | None:
    """The stem without a suffix of extra files: `1` for `1_overlay` and `mask_1_overlay`, "" for `label_viz`; None without one."""
    found = _EXTRA_TAIL.match(stem)
    if not found:
        return None
    mask = without_mask_tail(found[1], in_mask_folder=False)
    return mask[0] if mask else found[1]


def _words(folder: str) -> list[str]:
    """The lower-case words of a name, split at punctuation, digits, capitals, and between known words."""
    folder = re.sub(r"(?i)(hold|held)[-_. ]?out", "holdout", folder)
    folder = re.sub(r"(?i)ground[-_. ]?truth", "groundtruth", folder)
    words: list[str] = []
    for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+", folder):
        words += _known_words(part.lower()) or [part.lower()]
    return words


def _known_words(text: str) -> list[str] | None:
    if text in WORDS:
        return [text]
    for end in range(len(text) - 2, 1, -1):
        if text[:end] in WORDS and (rest := _known_words(text[end:])):
            return [text[:end], *rest]
    return None
