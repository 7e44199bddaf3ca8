"""Writing one split as WebDataset shards, byte for byte the same each time, with the place of every file for random access."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from webdataset.writer import TarWriter

BLOCK = 512  # tar: a header of one block, then the data in whole blocks


class ShardSet:
    """Shards `folder/PREFIX-000000.tar`, ...; the next one is begun when one has `max_bytes`. Leaving its context finishes the last."""

    def __init__(self, folder: Path, prefix: str, max_bytes: int):
        self._folder, self._prefix, self._max_bytes = folder, prefix, max_bytes
        self._count = 0
        self._file: IO[bytes] | None = None
        self._writer: TarWriter | None = None

    def write(self, key: str, files: dict[str, bytes]) -> tuple[str, dict[str, tuple[int, int]]]:
        """Add `KEY.SUFFIX` for each (suffix: bytes); returns the shard's name and {suffix: (offset, length)} of the bytes in it."""
        if self._writer is None or self._writer.tarstream.offset >= self._max_bytes:
            self.close()
            self._file = (self._folder / f"{self._prefix}-{self._count:06d}.tar").open("wb")
            self._writer = TarWriter(self._file, user="dreamteacher", group="dreamteacher", mtime=0, encoder=False)
            self._count += 1
        places, offset = {}, self._writer.tarstream.offset
        for suffix in sorted(files):  # the order in which TarWriter writes them
            places[suffix] = (offset + BLOCK, len(files[suffix]))
            offset += BLOCK + -(-len(files[suffix]) // BLOCK) * BLOCK
        self._writer.write({"__key__": key, **files})
        self._writer.tarstream.members.clear()  # tarfile would keep them all
        return f"{self._prefix}-{self._count - 1:06d}.tar", places

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Finish the last shard; after an error only let go of its file."""
        if kind is None:
            self.close()
        elif self._writer is not None and self._file is not None:
            self._writer.tarstream.fileobj.closed = True  # or tarfile's destructor would write the rest, and print that it cannot
            with suppress(OSError):  # of the buffered bytes, for which there may be no room
                self._file.close()

    def close(self) -> None:
        """Finish the last shard."""
        if self._writer is not None and self._file is not None:
            self._writer.close()
            self._file.close()
            self._writer = self._file = None
