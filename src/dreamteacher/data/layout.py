"""The names that people and well-known sets give to splits, to folders of pictures and masks, and to the files in them.

Names are read word by word (`SegmentationClassPNG`, `train_images`, `valannot`), so that the tables hold words and no branch knows a set.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

# A word of a split. "val?" names a split to measure by, which is val where no folder says val, and is left out as test otherwise.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("dev", "devel", "development", "eval", "evaluate", "evaluation", "holdout"), "val?"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
SHORT_SPLITS = {"tr": "train", "ts": "test"}  # beside a word for pictures or masks: imagesTr

IMAGE_WORDS = {"image", "images", "img", "imgs"}  # never a class
# Pictures, if masks lie beside them; else perhaps a class.
WEAK_IMAGE_WORDS = {
    "rgb", "input", "inputs", "frame", "frames", "photo", "photos", "picture", "pictures", "pic", "pics", "left", "ortho", "sat",
    "satellite", "original", "originals", "orig", "raw", "still", "stills", "scan", "scans", "tile", "tiles", "patch", "patches",
    "slice", "slices",
}  # fmt: skip
# With a number perhaps one of many, scan1/image.png and masks/scan1/1.png, and perhaps all pictures, as tile_512/1.png and mask_512/1.png.
ITEM_WORDS = {"frame", "photo", "picture", "pic", "still", "scan", "tile", "patch", "slice"}
FORMAT_WORDS = {"jpg", "jpeg", "png", "tif", "tiff", "bmp"}  # alone as weak as those, beside other words without meaning
MASK_WORDS = {"masks", "annot"}  # never pictures
# Masks, if one of them finds its picture; else perhaps a class.
WEAK_MASK_WORDS = {
    "mask", "label", "labels", "lbl", "gt", "gts", "groundtruth", "target", "targets", "output", "outputs", "semantic", "semantics",
    "sem", "seg", "segs", "segm", "segmentation", "segmentations", "segmap", "segmaps", "ann", "anns", "anno", "annos", "annots",
    "annotation", "annotations", "trimap", "trimaps", "stuffthingmaps", "pixelmaps", "labelids", "manual", "groundtruths",
}  # fmt: skip
# What lies beside masks and is neither picture nor mask of classes.
EXTRA_WORDS = {
    "instance", "instances", "instanceids", "panoptic", "overlay", "overlays", "vis", "viz", "visual", "visuals", "visualization",
    "visualizations", "visualisation", "visualisations", "colormap", "colormaps", "preview", "previews", "polygons", "depth", "depths",
    "disparity", "disparities", "normals",
}  # fmt: skip
COLOUR_WORDS = {"color", "colors", "colored", "colour", "colours", "coloured", "object", "objects", "human"}  # so beside a word for masks
FILLERS = {
    "dir", "folder", "set", "data", "files", "file", "split", "all", "full", "final", "fine", "coarse", "class", "classes", "id", "ids",
    "aug", "machine", "bit", "map", "maps", "st", "nd", "rd",
}  # fmt: skip
WORDS = set().union(SPLIT_WORDS, IMAGE_WORDS, WEAK_IMAGE_WORDS, FORMAT_WORDS, MASK_WORDS, WEAK_MASK_WORDS, EXTRA_WORDS, FILLERS)
STRONG_MASK_FOLDERS = {  # letters only: masks though each word alone is weak or unknown
    "segmentationclass", "segmentationclassaug", "segmentationclasspng", "segmentationclassraw", "gtfine", "gtcoarse", "anndir",
    "labelstr", "labelsts", "labeledapprovedfull", "stuffthingmaps", "maskpng",
}  # fmt: skip
WITH_LABELS = {"labelled", "labeled"}  # a folder of classes, beside one of names.UNLABELLED
# Of one set, on one side only: BDD100K's images/10k, Mapillary's v1.2/labels.
SILENT_FOLDERS = {"10k", "100k", "v1.2", "v2.0"}

# Last words of file names, after one of ._- and without their case.
IMAGE_TAILS = r"leftimg8bit|sat|rgb|irrg|image|img|im|raw|orig|original|0000|(?<=\d_)training|(?<=\d_)test"  # the last two of DRIVE
MASK_TAILS = (
    "labeltrainids|labelids|mask|masks|msk|seg|segm|segmentation|label|labels|lab|gt|groundtruth|annotation|annot|trimap|manual[12]?"
)
IN_MASK_FOLDERS = "l|lbl|m|jpg|jpeg|png|tif|tiff"  # of CamVid; and of tools that put .png behind the name of the picture
EXTRA_TAILS = (
    r"colou?rs?|instanceids|instancetrainids|instances?(?:[._-]?\d+)?|polygons|vis|viz|overlay|preview|panoptic|label_?noboundary"
    r"|parts_?\d*|depth|disparity"
)
_BEHIND = r"^(.+?)(?:[._-](?:gtfine|gtcoarse))?[._-]({})$"
_IMAGE_TAIL = re.compile(_BEHIND.format(IMAGE_TAILS), re.IGNORECASE)
_MASK_TAIL = re.compile(_BEHIND.format(f"(?:{MASK_TAILS})(?:[._-]?\\d+)?"), re.IGNORECASE)  # 1_mask_7: of one object
_TAIL_IN_MASKS = re.compile(_BEHIND.format(f"{MASK_TAILS}|{IN_MASK_FOLDERS}"), re.IGNORECASE)
# First words of file names: img_1.jpg and mask_1.png, before a number also img1.jpg and mask1.png; or whole names: 1/img.jpg, 1/mask.png.
_HEAD = r"^(?:{})(?:(?:[._-]|(?=\d))(.+))?$"
_IMAGE_HEAD = re.compile(_HEAD.format("img|image|im|rgb|sat|orig|original|photo|input|frame"), re.IGNORECASE)
_MASK_HEAD = re.compile(_HEAD.format("mask|masks|msk|label|labels|gt|seg|groundtruth|annotation|annot|target"), re.IGNORECASE)
_EXTRA_TAIL = re.compile(_BEHIND.format(EXTRA_TAILS), re.IGNORECASE)


class Meaning(NamedTuple):
    """What a folder's name says.

    role: "image", "image?" (if masks lie beside it), "mask", "mask?" (if one finds its picture), "extra" (neither), "extra?" (neither, if
    there are masks), or "". split: "train", "val", "val?", "test", "trainval" (train, unless a folder inside names a split), or "" if it
    names others (a folder above them); None if it names none.
    rank: of two masks of one picture the one of the lower rank counts, below 0 before any other. sure: all words are known.
    """

    role: str = ""
    split: str | None = None
    rank: int = 0
    sure: bool = True


@lru_cache(maxsize=4096)
def meaning(folder: str) -> Meaning:
    """See Meaning."""
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
        if "manual" in known:  # of DRIVE, beside mask/, which is the field of view; the first observer before the second
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
    if not splits or (strange and not role):  # pregnancy_test is no split, Training_Input_2018 is one
        return Meaning(role, None, rank, not strange)
    split = splits.pop() if len(splits) == 1 else "trainval" if "test" not in splits else ""
    return Meaning(role, split, rank, not strange)


@lru_cache(maxsize=4096)
def is_item(folder: str) -> bool:
    """Whether a folder such as scan1 may be one of many; see ITEM_WORDS."""
    words = _words(folder)
    return bool(words) and ITEM_WORDS.issuperset(words) and bool(re.search(r"\d", folder))


def split_and_rest(folder: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that one word of the name means, and its other words; None if none or several do."""
    words = _words(folder)
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return (splits.pop(), tuple(word for word in words if word not in SPLIT_WORDS)) if len(splits) == 1 else None


def without_image_tail(stem: str) -> str | None:
    """`1` of `1_sat`, `img_1` and `img1`, nothing of `img`, which is named by its folder; None without such a word."""
    found = _IMAGE_TAIL.match(stem) or _IMAGE_HEAD.match(stem)
    return found[1] or "" if found else None


def without_mask_tail(stem: str, in_mask_folder: bool) -> tuple[str, int] | None:
    """The stem of the picture that a mask of this stem (`1_mask`, `mask_1`, `mask1`) belongs to, nothing of `mask`, and the mask's rank
    among several; or None."""
    if found := (_TAIL_IN_MASKS if in_mask_folder else _MASK_TAIL).match(stem):
        return found[1], int(found[2].lower() == "labelids")
    return (found[1] or "", 0) if (found := _MASK_HEAD.match(stem)) else None


def without_extra_tail(stem: str) -> str | None:
    """`1` of `1_overlay`, of what lies beside masks, also of `mask_1_overlay`, nothing of `label_viz`; None without such a tail."""
    found = _EXTRA_TAIL.match(stem)
    if not found:
        return None
    mask = without_mask_tail(found[1], in_mask_folder=False)
    return mask[0] if mask else found[1]


def _words(folder: str) -> list[str]:
    """The words of a name in lower case, cut at signs, digits and capitals, and where known words are written as one."""
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
