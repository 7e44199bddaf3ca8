"""File trees: a local folder, or a prefix at any fsspec address (s3:// honours AWS_ENDPOINT_URL).

Names are strings here, for the reason given in files.walk.
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
from dreamteacher.data.items import BOX_SUFFIXES, Skipped
from dreamteacher.data.layout import meaning
from dreamteacher.errors import UserError
from dreamteacher.files import SYSTEM_FOLDERS, walk

NOT_PICTURES = {"classes.txt", "labels.csv", "data.yaml", "data.yml"}
SPLIT_LIST = re.compile(  # a text file that may list the pictures of a split
    r"(^|/)((?:ImageSets(?:/Segmentation|/Main)?|splits?)/)?(train|training|trainaug|trainval|val|valid|validation|dev|eval|test|testing)"
    r"([-_ ]?(lists?|files?|filelist|names?|ids?|images?|imgs?|set|split|index|paths?|labels?|annotations?|data))?"
    r"([-_]?(\d\d?|(19|20)\d\d))?\.txt$",
    re.IGNORECASE,
)
MAX_LISTS = 100
METADATA = re.compile(r"(^|/)(metadata\.(csv|jsonl)|_classes\.csv)$")  # HuggingFace's imagefolder and Roboflow, in any folder
MAX_METADATA = 10_000
ALL_PICTURES = SUFFIXES | UNREAD.keys()


class Tree(Protocol):
    """Pictures and other files below a root; names are relative to the root.

    at_once: how many files `read` should be asked for in one call.
    """

    batch_size: int

    def pictures(self, skipped: Skipped) -> Iterator[str]:
        """Names of all pictures, also in formats that cannot be read, and of files that may hold boxes (BOX_SUFFIXES), in any order. Other
        files are added to `skipped`."""
        ...

    def read(self, names: list[str], max_bytes: int) -> list[bytes | Exception]:
        """The content of each file, or the error; a file larger than `max_bytes` is an error."""
        ...

    def open_text(self, name: str) -> IO[str] | None:
        """Open a text file (UTF-8, with or without a BOM); None if it does not exist."""
        ...

    def tars(self) -> list[str]:
        """Sorted paths or addresses of the .tar files directly in the root."""
        ...


class Folder:
    """A local folder."""

    batch_size = 1

    def __init__(self, root: Path):
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def pictures(self, skipped: Skipped) -> Iterator[str]:
        """See Tree."""
        return _pictures(walk(self.root, partial(_count_folder, skipped)), skipped)

    def read(self, names: list[str], max_bytes: int) -> list[bytes | Exception]:
        """See Tree; sequential."""
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
    """All objects below an address such as s3://bucket/pictures. They are listed once, so that later arrivals are in neither the digest nor
    the data set.

    Raises:
        UserError: the address cannot be reached.
    """

    batch_size = 32  # a request takes tens of milliseconds, so many run concurrently

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
        """A line for each object, sorted by name: size, and ETag or time."""
        yield from (f"{name} {facts}" for name, facts in self._listed().execute("SELECT name, facts FROM objects ORDER BY name"))

    def pictures(self, skipped: Skipped) -> Iterator[str]:
        """See Tree; a prefix without objects has none."""
        return _pictures(self._names(skipped), skipped)

    def _names(self, skipped: Skipped) -> Iterator[str]:
        for (name,) in self._listed().execute("SELECT name FROM objects ORDER BY name"):
            folders = name.split("/")[:-1]
            system = next((i for i, part in enumerate(folders) if part.lower() in SYSTEM_FOLDERS), None)
            if system is not None:
                skipped.note_folder("system", "/".join(folders[: system + 1]))
            elif not any(part.startswith(".") for part in name.split("/")):
                yield name

    def _listed(self) -> sqlite3.Connection:
        """A temporary table of all objects."""
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
        """See Tree; concurrent."""
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
        return ""  # reported when it is read
    except Exception as error:
        raise cannot_open(url, error) from error


def _facts(info: dict[str, object]) -> str:
    changes = (info.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "created"))
    return f"{info.get('size')} {next((str(value) for value in changes if value), '')}"


def cannot_open(url: str, error: Exception) -> UserError:
    """The error for an address that cannot be opened."""
    words = " ".join(str(error).split())[:200]
    return UserError(f"cannot open {url}: {type(error).__name__}: {words}; check the address, the credentials and AWS_ENDPOINT_URL")


def _can_be_written(name: str) -> bool:
    """Whether a name can be stored in a manifest and a shard: UTF-8, without line ends and other control characters."""
    return name.isprintable() or not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)


def _count_folder(skipped: Skipped, kind: str, folder: str) -> None:
    """Count a folder, except an empty one that is named like a split, pictures or masks, which is not a class."""
    folder_meaning = meaning(posixpath.basename(folder))
    if kind != "empty" or not (folder_meaning.split or folder_meaning.role):
        skipped.add_folder(kind, folder)


def _pictures(names: Iterator[str], skipped: Skipped) -> Iterator[str]:
    for name in names:
        suffix = posixpath.splitext(name)[1].lower()
        if not _can_be_written(name):
            skipped.unprintable += 1
        elif suffix in ALL_PICTURES:
            yield name
        elif name in NOT_PICTURES:
            continue
        elif METADATA.search(name) and len(skipped.metadata) < MAX_METADATA:
            skipped.metadata.append(name)
        elif suffix in BOX_SUFFIXES:
            if SPLIT_LIST.search(name) and len(skipped.lists) < MAX_LISTS:
                skipped.lists.append(name)
            yield name
        else:
            skipped.add(name)


def too_large(size: int) -> OSError:
    """The error for a file that is too large."""
    return OSError(0, f"{size} bytes are more than a picture of ingest.max_pixels needs")
