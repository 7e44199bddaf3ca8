"""classes.txt: names, ids and colours."""

import pytest

from dreamteacher.data.class_list import ClassList, parse_classes, require_mask_classes
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
        ("255 void 9 9 9\n0 ground 0 0 0\n1 road 128 64 128", ["ground", "road", "void"], [*COLOURS, (9, 9, 9)]),
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
        ("a\na", "names the class 'a' twice"),
        ("a\n\nb", "line 2 is empty"),
        ("", "at least two different class names"),
    ],
)
def test_what_is_wrong_is_one_line(text, problem):
    with pytest.raises(UserError, match=problem):
        parse_classes(text, "classes.txt")


@pytest.mark.parametrize(
    "text",
    [
        "# label:color_rgb:parts:actions\nground:0,0,0::\nroad:128,64,128::a,b",
        "name,r,g,b\nground,0,0,0\nroad,128,64,128",
        "0 ground 0 0 0\n1 road 128 64 128",
    ],
)
def test_lists_of_colours_of_other_tools_may_be_copied(text):
    assert parse_classes(text, "classes.txt") == (["ground", "road"], COLOURS)


def test_a_line_for_255_or_minus_1_beside_ids_is_no_class():
    for text in ("0 ground\n1 road\n255 border", "-1 license plate\n0: ground\n1: road", "Pixel Value, Class\n0, ground\n1, road"):
        assert parse_classes(text, "classes.txt") == (["ground", "road"], None)
    assert parse_classes("0 ground 0 0 0\n1 road 128 64 128\n255 edge 224 224 192", "").mask_names == ["ground", "road"]


@pytest.mark.parametrize(
    "name", ["Void", "unlabeled", "Unlabelled", "unknown", "ignore", "IGNORE region", "no-data", "don't care", "out of roi", "no_data"]
)
def test_pixels_of_a_class_that_means_unknown_have_no_class_and_the_others_move_up(name):
    classes = ClassList([name, "ground", "road"])
    assert classes.mask_names == ["ground", "road"]
    assert classes.mask_ids()[[0, 1, 2, 255]].tolist() == [255, 0, 1, 255]
    assert ClassList(["ground", name, "road"]).mask_ids()[[0, 1, 2]].tolist() == [0, 255, 1]


def test_several_lines_may_mean_unknown_with_one_colour():
    classes = parse_classes("unlabeled 0 0 0\nout of roi 0 0 0\nroad 128 64 128\nvoid 1 1 1\nvoid 2 2 2\nsky 3 3 3", "classes.txt")
    assert classes.mask_names == ["road", "sky"]


@pytest.mark.parametrize("name", ["background", "other", "voids", "unknown disease", "static"])
def test_other_names_are_classes(name):
    assert ClassList([name, "road"]).mask_names == [name, "road"]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (None, "there are masks but no classes.txt in here"),
        ([f"c{i}" for i in range(300)], "lists 300 classes, and masks hold 255 at most .*; merge rare classes"),
        (["1 wall", "2 sky"], r"is numbered from 1, and masks from 0; add the line of id 0 \(0 void, if its pixels have no class\)"),
        (["void", "sky"], "names 1 classes besides those that mean unknown; two are needed"),
    ],
)
def test_masks_need_classes_whose_ids_they_can_hold(names, problem):
    with pytest.raises(UserError, match=problem):
        require_mask_classes(names and ClassList(names), "here")
