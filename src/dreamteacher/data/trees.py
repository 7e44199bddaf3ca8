"""Where files lie: a local folder, or a prefix at any address that fsspec knows (s3://, with AWS_ENDPOINT_URL honoured).

Names are plain text here, for the reason that files.walk gives.
"""

from __future__ import annotations

import os
import posixpath
import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Protocol

import fsspec

from dreamteacher.data.decode import SUFFIXES, UNREAD
from dreamteacher.data.items import BOX_SUFFIXES, PassedOver
from dreamteacher.data.layout import meaning
from dreamteacher.errors import UserError
from dreamteacher.files import SYSTEM_FOLDERS, walk

NOT_PICTURES = {"classes.txt", "labels.csv", "data.yaml", "data.yml"}
SPLIT_LIST = re.compile(  # a text file that may say which pictures are of a split
    r"(^|/)((?:ImageSets(?:/Segmentation|/Main)?|splits?)/)?(train|training|trainaug|trainval|val|valid|validation|dev|eval|test|testing)"
    r"([-_ ]?(lists?|files?|filelist|names?|ids?|images?|imgs?|set|split|index|paths?|labels?|annotations?|data))?"
    r"([-_]?(\d\d?|(19|20)\d\d))?\.txt$",
    re.IGNORECASE,
)
MOST_LISTS = 100
METADATA = re.compile(r"(^|/)(metadata\.(csv|jsonl)|_classes\.csv)$")  # of HuggingFace's imagefolder and Roboflow, in any folder
MOST_METADATA = 10_000
ALL_PICTURES = SUFFIXES | UNREAD.keys()


class Tree(Protocol):
    """Pictures below a root, and the other files beside them; names are relative to the root.

    at_once: how many files `read` should be asked for in one call.
    """

    at_once: int

    def pictures(self, passed_over: PassedOver) -> Iterator[str]:
        """Names of all pictures, also of kinds that are not read, and of files that may hold boxes (BOX_SUFFIXES), in any order; what else
        is there is added to `passed_over`."""
        ...

    def read(self, names: list[str], max_bytes: int) -> list[bytes | Exception]:
        """The content of each file, or why it cannot be had; a larger file than `max_bytes` is an error."""
        ...

    def open_text(self, name: str) -> IO[str] | None:
        """A text file (UTF-8, with or without a mark), None if there is none."""
        ...

    def tars(self) -> list[str]:
        """Paths or addresses of the .tar files in the root itself, by name."""
        ...


class Folder:
    """A local folder."""

    at_once = 1

    def __init__(self, root: Path):
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def pictures(self, passed_over: PassedOver) -> Iterator[str]:
        """See Tree."""
        return _pictures(walk(self.root, partial(_pass_over, passed_over)), passed_over)

    def read(self, names: list[str], max_bytes: int) -> list[bytes | Exception]:
        """One file after the other."""
        contents: list[bytes | Exception] = []
        for name in names:
            try:
                with open(posixpath.join(self.root, name), "rb") as file:  # noqa: PTH123 - see above
                    size = os.fstat(file.fileno()).st_size
                    contents.append(file.read() if size <= max_bytes else too_large(size))
            except OSError as error:
                contents.append(error)
        return contents

    def open_text(self, name: str) -> IO[str] | None:
        """See Tree."""
        path = self.root / name
        return path.open(newline="", encoding="utf-8-sig") if path.exists() else None

    def tars(self) -> list[str]:
        """See Tree."""
        return sorted(str(path) for path in self.root.glob("*.tar"))


class Prefix:
    """All objects below an address such as s3://bucket/pictures. They are listed once, so that what arrives later is in neither the
    digest nor the set.

    Raises:
        UserError: the address cannot be reached.
    """

    at_once = 32  # a request takes tens of milliseconds, so that many are on their way together

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        self._listing: sqlite3.Connection | None = None
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.address, use_listings_cache=False)
        except Exception as error:  # each kind of address has its own library, with its own errors
            raise cannot_open(self.address, error) from error

    def __str__(self) -> str:
        return self.address

    def describe(self) -> Iterator[str]:
        """A line for each object, by name: size, and ETag or time."""
        yield from (f"{name} {facts}" for name, facts in self._listed().execute("SELECT name, facts FROM objects ORDER BY name"))

    def pictures(self, passed_over: PassedOver) -> Iterator[str]:
        """See Tree; a prefix without objects has none."""
        return _pictures(self._names(passed_over), passed_over)

    def _names(self, passed_over: PassedOver) -> Iterator[str]:
        for (name,) in self._listed().execute("SELECT name FROM objects ORDER BY name"):
            folders = name.split("/")[:-1]
            system = next((i for i, part in enumerate(folders) if part.lower() in SYSTEM_FOLDERS), None)
            if system is not None:
                passed_over.note_folder("system", "/".join(folders[: system + 1]))
            elif not any(part.startswith(".") for part in name.split("/")):
                yield name

    def _listed(self) -> sqlite3.Connection:
        """The temporary table of all objects, filled folder by folder."""
        if self._listing is None:
            table = sqlite3.connect("", isolation_level=None)  # "": a private temporary file, gone with the connection
            table.execute("CREATE TABLE objects (name TEXT PRIMARY KEY, facts TEXT) WITHOUT ROWID")
            table.execute("BEGIN")
            try:
                for folder, _, files in self.files.walk(self.root, on_error="raise", detail=True):
                    rows = ((posixpath.relpath(f"{folder}/{file}", self.root), _facts(info)) for file, info in files.items() if file)
                    table.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?)", rows)
            except FileNotFoundError as error:
                if "bucket" in str(error):
                    raise cannot_open(self.address, error) from error
            except Exception as error:
                raise cannot_open(self.address, error) from error
            self._listing = table
        return self._listing

    def read(self, names: list[str], max_bytes: int) -> list[bytes | Exception]:
        """All together."""
        places = [f"{self.root}/{name}" for name in names]
        found = self.files.cat_ranges(places, [0] * len(places), [max_bytes + 1] * len(places), on_error="return")
        return [too_large(len(one)) if isinstance(one, bytes) and len(one) > max_bytes else one for one in found]

    def open_text(self, name: str) -> IO[str] | None:
        """See Tree."""
        try:
            return self.files.open(f"{self.root}/{name}", "r", newline="", encoding="utf-8-sig")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise cannot_open(f"{self.address}/{name}", error) from error

    def tars(self) -> list[str]:
        """See Tree."""
        names = self._listed().execute("SELECT name FROM objects WHERE name GLOB '*.tar' AND name NOT GLOB '*/*' ORDER BY name")
        return [f"{self.address}/{name}" for (name,) in names]


def describe(url: str) -> str:
    """Size, and ETag or time, of one object.

    Raises:
        UserError: it cannot be reached.
    """
    try:
        files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        return f"{path} {_facts(files.info(path))}"
    except FileNotFoundError:
        return ""  # said when it is read
    except Exception as error:
        raise cannot_open(url, error) from error


def _facts(info: dict[str, object]) -> str:
    changes = (info.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "created"))
    return f"{info.get('size')} {next((str(value) for value in changes if value), '')}"


def cannot_open(url: str, error: Exception) -> UserError:
    """What to say of an address that does not answer as it should."""
    words = " ".join(str(error).split())[:200]
    return UserError(f"cannot open {url}: {type(error).__name__}: {words}; check the address, the credentials and AWS_ENDPOINT_URL")


def _can_be_written(name: str) -> bool:
    """Neither a manifest nor a shard could name what is not UTF-8, or holds line ends and other controls."""
    return name.isprintable() or not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)


def _pass_over(passed_over: PassedOver, kind: str, folder: str) -> None:
    """Count a folder; not an empty one that is named as splits, pictures or masks are, which is no class."""
    said = meaning(posixpath.basename(folder))
    if kind != "empty" or not (said.split or said.role):
        passed_over.add_folder(kind, folder)


def _pictures(names: Iterator[str], passed_over: PassedOver) -> Iterator[str]:
    for name in names:
        suffix = posixpath.splitext(name)[1].lower()
        if not _can_be_written(name):
            passed_over.unprintable += 1
        elif suffix in ALL_PICTURES:
            yield name
        elif name in NOT_PICTURES:
            continue
        elif METADATA.search(name) and len(passed_over.metadata) < MOST_METADATA:
            passed_over.metadata.append(name)
        elif suffix in BOX_SUFFIXES:
            if SPLIT_LIST.search(name) and len(passed_over.lists) < MOST_LISTS:
                passed_over.lists.append(name)
            yield name
        else:
            passed_over.add(name)


def too_large(size: int) -> OSError:
    """Why a file is not read."""
    return OSError(0, f"{size} bytes are more than a picture of ingest.max_pixels needs")
