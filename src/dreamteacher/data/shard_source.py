"""Pictures and labels from WebDataset shards, local or at any fsspec address (s3:// honours AWS_ENDPOINT_URL)."""

from __future__ import annotations

import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import braceexpand
import fsspec

from dreamteacher.data.boxes import SUFFIX as BOXES
from dreamteacher.data.class_list import parse_classes, require_mask_classes
from dreamteacher.data.depth import SUFFIX as DEPTH
from dreamteacher.data.formats import SUFFIXES, why_unread
from dreamteacher.data.instances import SUFFIX as INSTANCES
from dreamteacher.data.items import AUTO, MASK_SUFFIXES, BoxLabel, Found, Item, LabelKind, Skipped, utf8
from dreamteacher.data.keypoints import SUFFIX as KEYPOINTS
from dreamteacher.data.keypoints import Body
from dreamteacher.data.layout import EXTRA_TAILS, MASK_TAILS, meaning, without_image_tail, without_mask_tail
from dreamteacher.data.multilabel import SUFFIX as MULTILABEL
from dreamteacher.data.names import class_name
from dreamteacher.data.trees import cannot_open, too_large
from dreamteacher.errors import UserError

_INNER = re.compile(rf"(.+)\.({MASK_TAILS}|{EXTRA_TAILS}|boxes|keypoints)", re.IGNORECASE)
DENSE_SUFFIXES = {"instances": INSTANCES, "depth": DEPTH}  # task -> suffix of its label maps
MAX_COMPARED = 1000  # names of a shard that are remembered to detect masks of unknown names
_CLASS = "cls"  # suffix of a class
_IS_MASK = re.compile(rf"({MASK_TAILS})\.\w+", re.IGNORECASE)


def are_shards(source: str) -> bool:
    """Whether `source` names tar files, by path or address."""
    return bool(re.search(r"\.(tar|tar\.gz|tgz)$", source))


def expand(source: str) -> list[str]:
    """Expand braces and * in a path or an address to shards; UserError if there are none."""
    urls: list[str] = []
    for url in braceexpand.braceexpand(source):
        urls += _glob(url) if "*" in url else [url]
    missing = [url for url in urls if "://" not in url and not Path(url).exists()]
    if missing or not urls:
        raise UserError(f"ingest.source: there is no shard {missing[0] if missing else source}")
    return urls


def _glob(url: str) -> list[str]:
    try:
        files, pattern = fsspec.core.url_to_fs(url)
        return sorted(files.unstrip_protocol(path) if "://" in url else path for path in files.glob(pattern))
    except Exception as error:  # each kind of address has its own library, with its own errors
        raise cannot_open(url, error) from error


def find_in_shards(urls: list[str], labels: LabelKind, max_bytes: int, task: str = AUTO) -> Found:
    """`sources.find` for WebDataset shards, which are streamed one after the other."""
    common = os.path.commonpath([url.rpartition("/")[0] for url in urls])
    names = {url: url[len(common) :].lstrip("/") if url.startswith(common) else url.rpartition("/")[2] for url in urls}
    splits = {url: _split_of(names[url]) for url in urls}
    if "val" in splits.values():  # dev and eval are val only if nothing else is
        splits = {url: "test" if split == "val?" else split for url, split in splits.items()}
    splits = {url: "val" if split == "val?" else split for url, split in splits.items()}
    counts = {"repeated_names": 0, "left_out_as_test": 0, "beside_masks": 0, "shards": len(urls), "damaged_shards": 0}
    counts["labels_away"] = 0
    where = f"classes.txt beside {urls[0]}"
    try:
        with fsspec.open(posixpath.join(posixpath.dirname(urls[0]), "classes.txt"), "r", encoding="utf-8-sig") as file, utf8(where):
            classes = parse_classes(file.read(), where)
    except FileNotFoundError:
        classes = None
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise cannot_open(urls[0], error) from error
    skipped = Skipped()
    if task == "keypoints" and classes is None and labels != "none":
        raise UserError(f"ingest.task = keypoints needs the names of the keypoints, a line each, in {where}; add it")

    def items() -> Iterator[Item]:
        labelled, folders = False, set[str]()
        for url in sorted(urls, key=lambda url: (splits[url] != "val", names[url])):
            if splits[url] == "test":
                counts["left_out_as_test"] += 1
            else:
                of_shard = names[url], splits[url], labels, task
                for item in _read_shard(url, *of_shard, max_bytes=max_bytes, counts=counts, skipped=skipped):
                    if item.mask is not None and task not in DENSE_SUFFIXES:
                        require_mask_classes(classes, "the folder of the shards")
                    labelled = labelled or item.mask is not None or item.cls is not None or item.boxes is not None
                    if len(folders) < 2 and (folder := posixpath.dirname(item.name[len(names[url]) + 1 :])):
                        folders.add(posixpath.normpath(folder))
                    yield item
        if labels != "none" and not labelled and len(folders) > 1:
            found.notes.append(
                f"the pictures lie in folders of the shards ({' and '.join(sorted(folders))}), which give no classes; if they are the "
                "classes, unpack the shards and name that folder as source, or add KEY.cls beside each KEY.jpg"
            )

    kind, has_val = "shards" if labels != "none" else "none", "val" in splits.values()
    found = Found(items(), classes, kind, has_val, counts, "files of the shards", skipped, wanted=labels != "none", task=task)
    found.body = Body(tuple(classes.names)) if classes and task == "keypoints" else None
    return found


def _split_of(shard: str) -> str | None:
    """The split named by a word of the shard's path; None without one."""
    words = (meaning(word).split for word in re.split(r"[\W_]|\d", shard.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")))
    return next(("train" if split == "trainval" else split for split in words if split), None)


def _read_shard(
    url: str,
    shard: str,
    split: str | None,
    labels: LabelKind,
    task: str,
    *,
    max_bytes: int,
    counts: dict[str, int],
    skipped: Skipped,
) -> Iterator[Item]:
    from webdataset.handlers import reraise_exception  # webdataset imports torch
    from webdataset.tariterators import group_by_keys

    def skip_duplicate(error: Exception) -> bool:
        """Skip a second file of the same name; without a handler group_by_keys would stop there."""
        repeated = "duplicate file name" in str(error)
        counts["repeated_names"] += repeated
        return repeated or reraise_exception(error)

    try:
        opened = fsspec.open(url, "rb").open()
    except Exception as error:
        raise cannot_open(url, error) from error
    first: set[str] = set()
    with opened as stream:
        try:
            for sample in group_by_keys(_members(url, split, stream, max_bytes), keys=_key_and_suffix, handler=skip_duplicate):
                key = sample["__key__"]
                _refuse_masks_of_other_names(url, key, first)
                suffix = next((suffix for suffix in sample if f".{suffix}" in SUFFIXES), None)
                unread = next((suffix for suffix in sample if why_unread(f"{key}.{suffix}")), None)
                own = KEYPOINTS if task == "keypoints" else DENSE_SUFFIXES.get(task, BOXES)
                counts["beside_masks"] += sum(
                    "." in suffix and suffix not in (BOXES, own) and not _IS_MASK.fullmatch(suffix) for suffix in sample
                )
                if suffix is None and unread is not None:
                    name = f"{shard}/{key}.{unread}"
                    yield Item(name, split, problem=why_unread(name))
                    continue
                if suffix is None:
                    for other in sample.keys() - {"__key__", "__url__"}:
                        is_label = other in (_CLASS, own, BOXES, MULTILABEL) or _IS_MASK.fullmatch(other)
                        counts["labels_away"] += labels != "none" and bool(is_label)
                        skipped.add(f"{shard}/{key}.{other}")
                    continue
                item = _item(f"{shard}/{key}.{suffix}", split, suffix, sample, labels, task=task)
                for other in sample.keys() - {"__key__", "__url__", suffix}:  # such as scan.png beside scan.jpg, captions
                    if "." not in other and other != _CLASS and not (other == "json" and item.cls is not None):
                        skipped.add(f"{shard}/{key}.{other}")
                yield item
        except (UserError, MemoryError):
            raise
        except Exception as error:  # a damaged archive or a lost connection, with errors of several libraries
            counts["damaged_shards"] += 1
            yield Item(shard, split, problem=f"damaged shard, what follows is lost: {type(error).__name__}")


def _refuse_masks_of_other_names(url: str, key: str, first: set[str]) -> None:
    """UserError for a file named like the mask of an earlier one (in `first`) but not KEY.mask.png: it would become a picture."""
    folder, stem = posixpath.split(key)
    base, _, inner = stem.rpartition(".")
    if (tail := without_mask_tail(stem, in_mask_folder=False)) and posixpath.join(folder, tail[0]) in first:
        picture = tail[0]
    elif base and meaning(inner).role in ("mask", "mask?") and posixpath.join(folder, base) in first:
        picture = base
    else:
        if len(first) < MAX_COMPARED:
            short = without_image_tail(stem)
            first |= {key} | {posixpath.join(folder, other) for other in (base or None, short) if other is not None}
        return
    of = posixpath.join(folder, picture).rstrip("/")
    raise UserError(f"{url}: {key} looks like the mask of {of}; in shards masks are called KEY.mask.png")


def _item(name: str, split: str | None, suffix: str, sample: dict[str, Any], labels: LabelKind, *, task: str) -> Item:
    masks = [sample[key] for key in sample if _IS_MASK.fullmatch(key) and f".{key.rpartition('.')[2]}" in MASK_SUFFIXES]
    if stored := DENSE_SUFFIXES.get(task) in sample:
        masks = [sample[DENSE_SUFFIXES[task]]]
    mask = masks[0] if masks and labels in ("auto", "masks") else None
    boxes = sample.get(KEYPOINTS if task == "keypoints" else BOXES) if labels in ("auto", "boxes") else None
    for part in (sample[suffix], mask, boxes):
        if isinstance(part, OSError):
            return Item(name, split, problem=f"cannot be read: {part.strerror}")
    try:
        cls = sample[MULTILABEL].decode() if task == "multilabel" and MULTILABEL in sample else _class_of(sample, task)
    except (ValueError, TypeError, AttributeError):
        return Item(name, split, problem="its .cls or .json has no class, or several; for these set ingest.task: multilabel")
    if boxes is not None:
        return Item(name, split, sample[suffix], boxes=BoxLabel("stored", boxes))
    cls = cls if labels in ("auto", "folders", "csv") and task in (AUTO, "classification", "multilabel") else None
    return Item(name, split, sample[suffix], mask, cls, stored=stored)


def _members(url: str, split: str | None, stream: IO[bytes], max_bytes: int) -> Iterator[dict[str, Any]]:
    """The files of a tar in webdataset's format; files larger than `max_bytes` are not read.

    Raises:
        UserError: the tar has folders of masks or splits, which are not supported in a stream.
    """
    met: dict[str, str] = {}
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            if (member.isreg() or member.islnk() or member.issym()) and not re.match(r"__[^/]*__($|/)", member.name):
                role, other_split = _role_and_split(posixpath.dirname(member.name))
                met.setdefault(role, member.name)
                masks = met.get("mask") or ("image" in met and met.get("mask?"))
                if masks or (other_split and split is None):
                    raise UserError(
                        f"{url}: {masks or member.name} lies in a folder of {'masks' if masks else 'a split'}, which is not looked for in "
                        "shards; unpack it and name the folder as source, or make shards of KEY.jpg and KEY.mask.png with train or val in "
                        "their names"
                    )
                yield {"fname": member.name, "data": _content(tar, member, max_bytes), "__url__": url}
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all members in memory


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes | OSError:
    """The content of a member, or the error why it is not read."""
    if not member.isreg():
        return OSError(0, "it is a link in the tar, without content; write the shard with tar --dereference --hard-dereference")
    if member.size > max_bytes:
        return too_large(member.size)
    file = tar.extractfile(member)
    return file.read() if file else b""


@lru_cache(maxsize=1024)
def _role_and_split(folder: str) -> tuple[str, bool]:
    """(role of a member's folder, see `layout`; whether it names a split other than train)."""
    meanings = [meaning(part) for part in folder.split("/")]
    roles = [each.role for each in meanings if each.role]
    role = "mask" if {"mask", "extra"} & set(roles) else "mask?" if "mask?" in roles else "image" if roles else ""
    return role, any(each.split in ("val", "val?", "test") for each in meanings)


def _key_and_suffix(path: str) -> tuple[str, str] | tuple[None, None]:
    """(`a/scan.v2`, `png`) for a/scan.v2.png, (`a/b`, `mask.png`) for a/b.mask.png; (None, None) for hidden files and without a suffix.

    webdataset itself splits at the first dot, so that scan.v2.png and scan.v3.png would belong to one sample.
    """
    folder, file = posixpath.split(path)
    stem, _, suffix = file.rpartition(".")
    if not stem or file.startswith("."):
        return None, None
    if inner := _INNER.fullmatch(stem):
        stem, suffix = inner[1], f"{inner[2]}.{suffix}"
    return posixpath.join(folder, stem), suffix


def _class_of(sample: dict[str, Any], task: str) -> str | None:
    """The class as text, from KEY.cls or KEY.json ("label" or "cls"); of a list in a multilabel task the value that `to_label` reads.

    Raises:
        ValueError: a list of another number of classes than one, and the task is not multilabel.
    """
    if _CLASS in sample:
        return class_name(sample[_CLASS].decode("utf-8"))
    facts = json.loads(sample["json"]) if "json" in sample else {}
    value = facts.get("label", facts.get("cls")) if isinstance(facts, dict) else None
    if value is None:
        return None
    names = [class_name(str(int(each) if isinstance(each, float) and each.is_integer() else each)) for each in _as_list(value)]
    if task == "multilabel" and isinstance(value, list):
        return json.dumps({"yes": names, "unknown": []})
    (name,) = names
    return name


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
