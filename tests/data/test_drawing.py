import numpy as np

from dreamteacher.data.drawing import COLOURS, class_colours, draw_classes

FIRST, SECOND = COLOURS[:3], COLOURS[3:6]


def test_classes_are_tinted_and_background_and_unknown_are_not() -> None:
    picture = np.full((1, 4, 3), 100, np.uint8)
    classes = ["Background", *(f"class {number}" for number in range(1, 12))]
    tinted = draw_classes(picture, np.array([[0, 1, 11, 255]], np.uint8), classes)
    assert (tinted[0, [0, 3]] == 100).all()
    assert tinted[0, 1].tolist() == tinted[0, 2].tolist() == [50 + channel // 2 for channel in FIRST], "ten colours in turn"


def test_a_first_class_that_is_no_background_is_tinted() -> None:
    colours = class_colours(["road", "sky"])
    assert [colour.tobytes() for colour in colours[:2]] == [FIRST, SECOND]
    assert not colours[2:].any()
    tinted = draw_classes(np.full((1, 2, 3), 100, np.uint8), np.array([[0, 255]], np.uint8), ["road", "sky"])
    assert tinted[0].tolist() == [[50 + channel // 2 for channel in FIRST], [100] * 3]
