"""Lists such as Caffe's train.txt and val.txt, on whose lines the number of a class stands behind each picture."""

from __future__ import annotations

import sqlite3

from dreamteacher.data.class_list import ClassList
from dreamteacher.data.class_values import refuse_values
from dreamteacher.data.splits import Splits, lines_of_list, pictures_of_list, split_of_list
from dreamteacher.data.table import scalar
from dreamteacher.data.trees import Tree
from dreamteacher.errors import UserError


def take_numbers(table: sqlite3.Connection, tree: Tree, splits: Splits, classes: ClassList | None) -> list[str]:
    """Give pictures the class of their number in the lists, by name where there is a classes.txt, as if they lay in a folder of it.

    Numbers are classes only if each line of a list has one, one list is of train, and neither folders nor masks say something else.

    Returns:
        The lists that gave classes.

    Raises:
        UserError: two lists differ about a picture, classes.txt has no such number, or the numbers are values rather than classes.
    """
    folders = scalar(table, "SELECT count(DISTINCT class) FROM files WHERE role = 'picture' AND class != ''")
    lists = [name for name in splits.starts if all(len(words) == 1 and words[0].isdecimal() for _, words in lines_of_list(tree, name))]
    if folders > 1 or scalar(table, "SELECT EXISTS (SELECT 1 FROM pairs)") or "train" not in map(split_of_list, lists):
        return []
    if classes and classes.is_numbered_from_one:
        raise UserError(f"{tree}/classes.txt is numbered from 1, and the numbers in {lists[0]} count from 0; number both from 0")
    table.execute("UPDATE files SET class = '' WHERE role = 'picture'")
    for name in lists:
        for key, words in pictures_of_list(table, tree, name, splits.starts[name]):
            number = int(words[0])
            if classes and number >= len(classes.names):
                count = len(classes.names)
                raise UserError(f"{tree}/{name} has the number {number}, and classes.txt names {count} classes, from 0; correct one")
            cls = classes.names[number] if classes else str(number)
            table.execute("UPDATE files SET class = ? WHERE key = ? AND role = 'picture' AND class = ''", (cls, key))
            others = table.execute("SELECT name, class FROM files WHERE key = ? AND role = 'picture' AND class != ?", (key, cls))
            if other := others.fetchone():
                raise UserError(f"{tree}/{name}: {other[0]} is of class {cls!r}, and of {other[1]!r} in a line or list before; keep one")
    of_pictures = "FROM files WHERE role = 'picture' AND class != ''"
    values = [value for (value,) in table.execute(f"SELECT DISTINCT class {of_pictures} ORDER BY length(class), class")]
    n_labels = scalar(table, f"SELECT count(*) {of_pictures}")
    refuse_values(values, n_labels, f"{tree}/{' and '.join(lists)}", are_named=classes is not None)
    return lists
