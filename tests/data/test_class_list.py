"""classes.txt: names, ids and colours."""

import pytest

from dreamteacher.data.class_list import parse_classes
from dreamteacher.errors import UserError

COLOURS = [(0, 0, 0), (128, 64, 128)]


@pytest.mark.parametrize(
    ("text", "names", "colours"),
    [
        ("ground\nroad\n", ["ground", "road"], None),
        ("ground #000000\nroad #804080\n", ["ground", "road"], COLOURS),
        ("ground,#000000\nparking lot, #804080\n", ["ground", "parking lot"], COLOURS),
        ("ground 0 0 0\nparking lot 128 64 128", ["ground", "parking lot"], COLOURS),
        ("ground,0,0,0\nroad,128,64,128", ["ground", "road"], COLOURS),
        ("name,r,g,b\nground,0,0,0\nroad,128,64,128", ["ground", "road"], COLOURS),
        ("0 0 0\tground\n128 64 128\troad", ["ground", "road"], COLOURS),
        ("0 ground\n1 road", ["ground", "road"], None),
        ("1: road\n0: ground", ["ground", "road"], None),
        ("0 ground\n1 road\n255 void", ["ground", "road"], None),
        ("255 void 0 0 0\n0 ground 0 0 0\n1 road 128 64 128", ["ground", "road"], COLOURS),
        ("0 ground\n200 road\n255 void", ["0 ground", "200 road", "255 void"], None),
        ("\n".join(f"{i} c{i}" for i in range(256)), [f"c{i}" for i in range(256)], None),
        ("0 ground 0 0 0\n1 road 128 64 128", ["ground", "road"], COLOURS),
        ("0 0 0 ground\n1 1 1 road", ["ground", "road"], [(0, 0, 0), (1, 1, 1)]),
        ("class #1\nclass #2", ["class #1", "class #2"], None),
        ("0\n1\n2\n", ["0", "1", "2"], None),
        ("1 cent\n2 cent\n5 cent", ["1 cent", "2 cent", "5 cent"], None),
        ("model 1 2 3\nother", ["model 1 2 3", "other"], None),
        (" road \n\ufeffgreen\u00a0 field\n", ["road", "green field"], None),
    ],
)
def test_each_line_is_a_class(text, names, colours):
    assert parse_classes(text, "classes.txt") == (names, colours)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a #000000\nb", "line 2, 'b', has no colour and others have; give each line one such as #804080"),
        ("a #804080\nb #804080", r"'a' and 'b' have the same colour \(128, 64, 128\)"),
        ("a\na", "at least two different class names"),
        ("a\n\nb", "at least two different class names"),
        ("", "at least two different class names"),
    ],
)
def test_what_is_wrong_is_one_line(text, problem):
    with pytest.raises(UserError, match=problem):
        parse_classes(text, "classes.txt")
