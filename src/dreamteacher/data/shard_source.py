"""Pictures and labels out of WebDataset shards, local or at any address that fsspec knows (s3://, with AWS_ENDPOINT_URL honoured)."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import braceexpand
import fsspec

from dreamteacher.data.decode import SUFFIXES
from dreamteacher.data.items import MASK_SUFFIXES, SPLITS, Found, Item, LabelKind, masks_need_classes, parse_classes, utf8
from dreamteacher.data.trees import cannot_open
from dreamteacher.errors import UserError


def are_shards(source: str) -> bool:
    """Whether `source` names tar files, by path or address."""
    return bool(re.search(r"\.(tar|tar\.gz|tgz)$", source))


def expand(source: str) -> list[str]:
    """The shards that braces and * of a path or an address stand for; UserError if there are none."""
    urls: list[str] = []
    for url in braceexpand.braceexpand(source):
        urls += _glob(url) if "*" in url else [url]
    missing = [url for url in urls if "://" not in url and not Path(url).exists()]
    if missing or not urls:
        raise UserError(f"ingest.source: there is no shard {missing[0] if missing else source}")
    return urls


def tars_in(folder: str) -> list[str]:
    """The .tar files in a folder, here or at an address, by name."""
    return _glob(posixpath.join(folder, "*.tar")) if "://" in folder else sorted(str(path) for path in Path(folder).glob("*.tar"))


def _glob(url: str) -> list[str]:
    try:
        files, pattern = fsspec.core.url_to_fs(url)
        return sorted(files.unstrip_protocol(path) if "://" in url else path for path in files.glob(pattern))
    except Exception as error:  # each kind of address has its own library, with its own errors
        raise cannot_open(url, error) from error


def find_in_shards(urls: list[str], labels: LabelKind) -> Found:
    """`sources.find` for WebDataset shards; they are read one after the other as a stream."""
    common = os.path.commonpath([url.rpartition("/")[0] for url in urls])
    names = {url: url[len(common) :].lstrip("/") if url.startswith(common) else url.rpartition("/")[2] for url in urls}
    splits = {url: next((SPLITS[word] for word in re.split(r"\W|_", names[url].lower()) if word in SPLITS), None) for url in urls}
    counts = {"ignored_files": 0, "repeated_names": 0, "left_out_as_test": 0, "shards": len(urls), "damaged_shards": 0}
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

    def items() -> Iterator[Item]:
        for url in sorted(urls, key=lambda url: (splits[url] != "val", names[url])):
            if splits[url] == "test":
                counts["left_out_as_test"] += 1
            else:
                for item in _read_shard(url, names[url], splits[url], labels, counts):
                    if item.mask is not None and classes is None:
                        raise masks_need_classes("the folder of the shards")
                    yield item

    return Found(items(), classes, "shards" if labels != "none" else "none", "val" in splits.values(), counts)


def _read_shard(url: str, shard: str, split: str | None, labels: LabelKind, counts: dict[str, int]) -> Iterator[Item]:
    from webdataset.handlers import reraise_exception  # webdataset imports torch
    from webdataset.tariterators import group_by_keys, tar_file_expander

    def pass_over(error: Exception) -> bool:
        """A second file of one name is left out; group_by_keys would leave out all that follow it."""
        repeated = "duplicate file name" in str(error)
        counts["repeated_names"] += repeated
        return repeated or reraise_exception(error)

    try:
        opened = fsspec.open(url, "rb").open()
    except Exception as error:
        raise cannot_open(url, error) from error
    with opened as stream:
        try:
            for sample in group_by_keys(tar_file_expander([{"url": url, "stream": stream}]), handler=pass_over):
                suffix = next((key for key in sample if f".{key}" in SUFFIXES), None)
                if suffix is None:
                    counts["ignored_files"] += 1
                    continue
                name = f"{shard}/{sample['__key__']}.{suffix}"
                mask = next((sample[key] for key in sample if key.startswith("mask.") and f".{key[5:]}" in MASK_SUFFIXES), None)
                try:
                    cls = _class_of(sample)
                except (ValueError, TypeError):
                    yield Item(name, split, problem="its .cls or .json cannot be read")
                    continue
                mask, cls = (mask if labels in ("auto", "masks") else None), (cls if labels in ("auto", "folders", "csv") else None)
                yield Item(name, split, sample[suffix], mask, cls)
        except Exception as error:  # a damaged archive or a lost connection, in the words of any of five libraries
            counts["damaged_shards"] += 1
            yield Item(shard, split, problem=f"damaged shard, what follows is lost: {type(error).__name__}")


def _class_of(sample: dict[str, bytes]) -> str | None:
    """The class as text, from KEY.cls or KEY.json ("label" or "cls")."""
    if "cls" in sample:
        return sample["cls"].decode("utf-8").strip()
    facts = json.loads(sample["json"]) if "json" in sample else {}
    value = facts.get("label", facts.get("cls")) if isinstance(facts, dict) else None
    return None if value is None else str(value)
