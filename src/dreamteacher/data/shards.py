"""Write a split as WebDataset shards, reproducible to the byte, with the offset of every file for random access.

Uses tarfile, because webdataset's TarWriter, a thin layer over it, imports torch.
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
    """Writer of shards `folder/PREFIX-000000.tar`, ...; starts the next at `max_bytes`; a context manager."""

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
        self._tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all members in memory
        return f"{self._prefix}-{self._count - 1:06d}.tar", places

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Finish the last shard; after an error only close its file."""
        if kind is None:
            self.close()
        elif self._tar is not None and self._file is not None:
            self._tar.fileobj.closed = True  # type: ignore[attr-defined]  # else tarfile's destructor would try to write the rest
            with suppress(OSError):  # flushing the buffer fails on a full disk
                self._file.close()

    def close(self) -> None:
        """Finish the last shard."""
        if self._tar is not None and self._file is not None:
            self._tar.close()
            self._file.close()
            self._tar = self._file = None
