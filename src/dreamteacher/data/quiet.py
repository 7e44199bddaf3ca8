"""Suppress output of C libraries."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_c_libraries() -> Iterator[None]:
    """Discard what C code writes to file descriptor 2 (warnings of libtiff, libpng, libheif); Python's own output stays.

    The descriptor is shared by all threads, so wrap an entire pass, not single pictures. `sys.stderr` is replaced in the block; look it up
    when writing, as tracebacks and warnings do.
    """
    stream = sys.stderr
    try:
        shown = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    try:
        is_descriptor_2 = stream is not None and stream.fileno() == 2
    except (OSError, ValueError):  # a stream without a descriptor, such as a notebook's
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
