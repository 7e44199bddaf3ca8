"""Streaming reader for a JSON object of arrays, as COCO files of large data sets hold tens of millions of boxes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

CHUNK = 1 << 20  # characters


def elements(file: IO[str]) -> Iterator[tuple[str, Any]]:
    """Yield (key, element) for each array in a JSON object, with one element in memory at a time; other values are skipped.

    Raises:
        json.JSONDecodeError: the file is not such an object.
    """
    reader = _Reader(file)
    reader.expect("{")
    while reader.peek() != "}":
        key = reader.value()
        reader.expect(":")
        if reader.peek() == "[":
            reader.expect("[")
            while reader.peek() != "]":
                yield key, reader.value()
                if reader.peek() != "]":
                    reader.expect(",")
            reader.expect("]")
        else:
            reader.value()
        if reader.peek() != "}":
            reader.expect(",")


class _Reader:
    """Reads a JSON text value by value."""

    def __init__(self, file: IO[str]):
        self._file, self._text, self._at, self._chunk = file, "", 0, CHUNK
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not whitespace."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                raise json.JSONDecodeError("the file ends early", self._text[-20:], self._at)

    def expect(self, mark: str) -> None:
        if self.peek() != mark:
            raise json.JSONDecodeError(f"{mark!r} is missing", self._text, self._at)
        self._at += 1

    def value(self) -> Any:
        self.peek()
        self._chunk = CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                if end < len(self._text) or not self._more():  # a number at the end may have more digits
                    self._at = end
                    return value
            except json.JSONDecodeError:
                if not self._more():
                    raise

    def _more(self) -> bool:
        more = self._file.read(self._chunk)
        self._text, self._at = self._text[self._at :] + more, 0
        self._chunk *= 2  # a long element is decoded a few times only
        return bool(more)
