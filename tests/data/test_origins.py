"""Names that contain the origin of a picture."""

import pytest

from dreamteacher.data.origins import LIKE, origin_of


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        (f"train/cat/IMG1_jpg.rf.{'0a' * 16}.jpg", "img1_jpg"),
        ("train/v1_frame_0007.jpg", "v1"),
        ("train/a/patient07_slice3.png", "patient07"),
        ("train/Case 12/t1.png", "case 12"),
        ("train/suitcase12.png", None),
        ("train/images/a/video_frame_0007.jpg", "a/video"),
        ("val/walk_frame_0007.jpg", "walk"),
        ("train/frame_0007.png", None),
        ("train/cat/12.png", None),
        ("train/scans/12.png", None),
    ],
)
def test_the_origin_is_what_the_name_says(name: str, origin: str | None) -> None:
    assert origin_of(name) == origin
    assert origin is None or any(part.strip("%") in name.lower() for part in LIKE)
