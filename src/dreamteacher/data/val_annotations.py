"""Tiny ImageNet's val_annotations.txt: the classes of val pictures, which are not in class folders."""

from __future__ import annotations

import posixpath
import sqlite3

from dreamteacher.data.items import utf8
from dreamteacher.data.names import class_name, nfc
from dreamteacher.data.trees import Tree

NAME = "val_annotations.txt"


def take_val_annotations(table: sqlite3.Connection, tree: Tree, lists: list[str]) -> list[str]:
    """Set the class of pictures beside such a file, or in images/ there, if a class folder of that name exists.

    Returns:
        The text files among `lists` that set a class.
    """
    used = []
    classes = {cls for (cls,) in table.execute("SELECT DISTINCT class FROM files WHERE role = 'picture'")} if lists else set()
    for name in lists:
        file = tree.open_text(name) if posixpath.basename(name) == NAME else None
        if file is None:
            continue
        folder, n = posixpath.dirname(name), 0
        with file, utf8(f"{tree}/{name}"):
            for words in map(str.split, file):
                cls = class_name(words[1]) if len(words) > 1 else ""
                if cls and cls in classes:
                    picture = nfc(words[0])
                    places = [posixpath.join(folder, below, picture) for below in ("images", "")]
                    n += table.execute(
                        "UPDATE files SET class = ? WHERE name IN (?, ?) AND role = 'picture' AND class = ''", (cls, *places)
                    ).rowcount
        if n:
            table.execute("DELETE FROM box_files WHERE name = ?", [name])
            used.append(name)
    return used
