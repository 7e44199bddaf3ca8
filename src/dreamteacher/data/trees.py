"""Where files lie: a local folder, or a prefix at any address that fsspec knows (s3://, with AWS_ENDPOINT_URL honoured).

Names are plain text here, for the reason that files.walk gives.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import fsspec

from dreamteacher.data.decode import SUFFIXES
from dreamteacher.errors import UserError
from dreamteacher.files import walk

NOT_PICTURES = {"classes.txt", "labels.csv"}


class Tree(Protocol):
    """Pictures below a root, and the few other files beside them; names are relative to the root.

    at_once: how many files `read` should be asked for in one call.
    """

    at_once: int

    def pictures(self, counts: dict[str, int]) -> Iterator[str]:
        """Names of all pictures, in any order; what is passed over is counted as ignored_files or unprintable_names."""
        ...

    def read(self, names: list[str], max_bytes: int) -> list[bytes | Exception]:
        """The content of each file, or why it cannot be had; a larger file than `max_bytes` is an error."""
        ...

    def open_text(self, name: str) -> IO[str] | None:
        """A text file (UTF-8, with or without a mark), None if there is none."""
        ...


class Folder:
    """A local folder."""

    at_once = 1

    def __init__(self, root: Path):
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def pictures(self, counts: dict[str, int]) -> Iterator[str]:
        """See Tree."""
        for name in walk(self.root):
            if not _can_be_written(name):
                counts["unprintable_names"] += 1
            elif _is_picture(name, counts):
                yield name

    def read(self, names: list[str], max_bytes: int) -> list[bytes | Exception]:
        """One file after the other."""
        contents: list[bytes | Exception] = []
        for name in names:
            try:
                with open(posixpath.join(self.root, name), "rb") as file:  # noqa: PTH123 - see above
                    size = os.fstat(file.fileno()).st_size
                    contents.append(file.read() if size <= max_bytes else _too_large(size))
            except OSError as error:
                contents.append(error)
        return contents

    def open_text(self, name: str) -> IO[str] | None:
        """See Tree."""
        path = self.root / name
        return path.open(newline="", encoding="utf-8-sig") if path.exists() else None


class Prefix:
    """All objects below an address such as s3://bucket/pictures.

    Raises:
        UserError: the address cannot be reached.
    """

    at_once = 32  # a request takes tens of milliseconds, so that many are on their way together

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.address, use_listings_cache=False)
        except Exception as error:  # each kind of address has its own library, with its own errors
            raise cannot_open(self.address, error) from error

    def __str__(self) -> str:
        return self.address

    def pictures(self, counts: dict[str, int]) -> Iterator[str]:
        """Folder by folder; a prefix without objects has none."""
        try:
            for folder, _, names in self.files.walk(self.root, on_error="raise"):
                for file in names:
                    name = posixpath.relpath(f"{folder}/{file}", self.root)
                    if any(part.startswith(".") for part in name.split("/")):
                        continue
                    if not _can_be_written(name):
                        counts["unprintable_names"] += 1
                    elif _is_picture(file, counts):
                        yield name
        except FileNotFoundError as error:
            if "bucket" in str(error):
                raise cannot_open(self.address, error) from error
        except Exception as error:
            raise cannot_open(self.address, error) from error

    def read(self, names: list[str], max_bytes: int) -> list[bytes | Exception]:
        """All together."""
        places = [f"{self.root}/{name}" for name in names]
        found = self.files.cat_ranges(places, [0] * len(places), [max_bytes + 1] * len(places), on_error="return")
        return [_too_large(len(one)) if isinstance(one, bytes) and len(one) > max_bytes else one for one in found]

    def open_text(self, name: str) -> IO[str] | None:
        """See Tree."""
        try:
            return self.files.open(f"{self.root}/{name}", "r", newline="", encoding="utf-8-sig")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise cannot_open(f"{self.address}/{name}", error) from error


def describe(address: str) -> Iterator[str]:
    """A line for each object below an address, or for the one that it names: path, size, and ETag or time; none if nothing is there.

    Raises:
        UserError: the address cannot be reached.
    """
    place = Prefix(address)
    try:
        for path, facts in place.files.find(place.root, detail=True).items():
            changes = (facts.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "created"))
            yield f"{path} {facts.get('size')} {next((str(value) for value in changes if value), '')}"
    except FileNotFoundError:
        return
    except Exception as error:
        raise cannot_open(address, error) from error


def cannot_open(url: str, error: Exception) -> UserError:
    """What to say of an address that does not answer as it should."""
    words = " ".join(str(error).split())[:200]
    return UserError(f"cannot open {url}: {type(error).__name__}: {words}; check the address, the credentials and AWS_ENDPOINT_URL")


def _can_be_written(name: str) -> bool:
    """Neither a manifest nor a shard could name what is not UTF-8, or holds line ends and other controls."""
    return name.isprintable() or not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)


def _is_picture(name: str, counts: dict[str, int]) -> bool:
    if posixpath.splitext(name)[1].lower() in SUFFIXES:
        return True
    counts["ignored_files"] += posixpath.basename(name) not in NOT_PICTURES
    return False


def _too_large(size: int) -> OSError:
    return OSError(0, f"{size} bytes are more than a picture of ingest.max_pixels needs")
