"""Silence for C libraries."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_c_libraries() -> Iterator[None]:
    """Drop what C code writes to the process's standard error (libtiff, libpng, libheif warn there); Python's own output stays.

    File descriptor 2 is shared by all threads, so this belongs around a whole pass and not around one picture. `sys.stderr` is
    replaced inside by a stream of its own, so take it when you write, not before; tracebacks and warnings do.
    """
    stream = sys.stderr
    try:
        shown = os.dup(2)
    except OSError:  # closed: nobody sees it anyway
        yield
        return
    try:
        is_descriptor_2 = stream is not None and stream.fileno() == 2
    except (OSError, ValueError):  # a stream of another kind, such as a notebook's
        is_descriptor_2 = False
    if is_descriptor_2:
        stream.flush()
        sys.stderr = os.fdopen(os.dup(shown), "w", 1, encoding=stream.encoding, errors=stream.errors)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        if is_descriptor_2:
            inner, sys.stderr = sys.stderr, stream
            inner.flush()
            inner.close()
