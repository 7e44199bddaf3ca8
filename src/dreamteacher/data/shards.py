"""Writing one split as WebDataset shards, byte for byte the same each time, with the place of every file for random access.

By tarfile, for webdataset's TarWriter, a thin layer over it, imports torch.
"""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

BLOCK = 512  # tar: a header of one block, then the data in whole blocks


class ShardSet:
    """Shards `folder/PREFIX-000000.tar`, ...; the next one is begun when one has `max_bytes`. Leaving its context finishes the last."""

    def __init__(self, folder: Path, prefix: str, max_bytes: int):
        self._folder, self._prefix, self._max_bytes = folder, prefix, max_bytes
        self._count = 0
        self._file: IO[bytes] | None = None
        self._tar: tarfile.TarFile | None = None

    def write(self, key: str, files: dict[str, bytes]) -> tuple[str, dict[str, tuple[int, int]]]:
        """Add `KEY.SUFFIX` for each (suffix: bytes); returns the shard's name and {suffix: (offset, length)} of the bytes in it."""
        if self._tar is None or self._tar.offset >= self._max_bytes:
            self.close()
            self._file = (self._folder / f"{self._prefix}-{self._count:06d}.tar").open("wb")
            self._tar = tarfile.open(fileobj=self._file, mode="w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - see close
            self._count += 1
        places = {}
        for suffix, data in sorted(files.items()):
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size, member.mode, member.uname, member.gname = len(data), 0o444, "dreamteacher", "dreamteacher"
            places[suffix] = (self._tar.offset + BLOCK, len(data))
            self._tar.addfile(member, io.BytesIO(data))
        self._tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
        return f"{self._prefix}-{self._count - 1:06d}.tar", places

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Finish the last shard; after an error only let go of its file."""
        if kind is None:
            self.close()
        elif self._tar is not None and self._file is not None:
            self._tar.fileobj.closed = True  # type: ignore[attr-defined]  # or tarfile's destructor would write the rest, and print that it cannot
            with suppress(OSError):  # of the buffered bytes, for which there may be no room
                self._file.close()

    def close(self) -> None:
        """Finish the last shard."""
        if self._tar is not None and self._file is not None:
            self._tar.close()
            self._file.close()
            self._tar = self._file = None
