"""Less common formats: read, or named in the error with a remedy."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from picture_files import encoded
from PIL import Image, features

from dreamteacher.data.decode import SUFFIXES, UNREAD, BadPicture, decode

RAMP = np.stack([np.tile(np.arange(0, 240, 5, np.uint8), (32, 1))] * 3, axis=2)
RAMP[:16, :, 0] = 200
COLOUR = Image.fromarray(RAMP)


def distance(image: np.ndarray) -> float:
    assert image.shape == RAMP.shape
    return float(np.abs(image.astype(int) - RAMP).mean())


@pytest.mark.skipif(not features.check("avif"), reason="a Pillow without AVIF")
def test_avif_is_read():
    picture = decode(encoded(COLOUR, "AVIF", quality=90, subsampling="4:4:4"))
    assert distance(picture.image) < 3
    assert (picture.lossless, picture.suffix, picture.frames) == (False, None, 1)
    assert decode(encoded(COLOUR, "AVIF", save_all=True, append_images=[COLOUR.rotate(180)] * 2)).frames == 3
    assert ".avif" in SUFFIXES


@pytest.mark.skipif(not features.check("jpg_2000"), reason="a Pillow without JPEG 2000")
def test_jpeg_2000_is_read():
    for options, lossless in (
        ({}, True),
        ({"irreversible": True, "quality_mode": "rates", "quality_layers": [5]}, False),
        ({"no_jp2": True}, True),
    ):
        picture = decode(encoded(COLOUR, "JPEG2000", **options))
        assert distance(picture.image) < (1 if lossless else 8)
        assert (picture.lossless, picture.suffix) == (lossless, None)
    deep = Image.fromarray(RAMP[..., 1].astype(np.uint16) * 10)
    assert decode(encoded(deep, "JPEG2000")).image.max() == 255
    assert {".jp2", ".j2k", ".jpf", ".jpx"} <= SUFFIXES


def test_a_fourth_band_of_jpeg_2000_is_transparency_only_if_the_file_says_so():
    layer = Image.fromarray(np.dstack([RAMP, np.full((32, 48), 100, np.uint8)]))
    assert distance(decode(encoded(layer, "JPEG2000", no_jp2=True)).image) < 1  # a bare codestream says nothing
    boxes = encoded(layer, "JPEG2000")
    assert (b"cdef" in boxes) == (distance(decode(boxes).image) > 20)


def test_colour_jpeg_2000_of_more_than_eight_bits_is_refused():
    data = bytearray(encoded(COLOUR, "JPEG2000", no_jp2=True))
    for band in range(3):
        data[42 + 3 * band] = 11
    with pytest.raises(BadPicture, match="12-bit colour"):
        decode(bytes(data))


def test_heic_is_read_where_pillow_heif_is_installed():
    pytest.importorskip("pillow_heif")
    picture = decode(encoded(COLOUR, "HEIF", quality=95))
    assert distance(picture.image) < 4
    assert (picture.lossless, picture.suffix, picture.frames) == (False, None, 1)
    turned = Image.Exif()
    turned[0x112] = 6
    assert decode(encoded(COLOUR, "HEIF", exif=turned.tobytes())).image.shape == (48, 32, 3)
    assert {".heic", ".heif"} <= SUFFIXES
    assert not SUFFIXES & set(UNREAD)
    with pytest.raises(BadPicture, match=r"damaged|a HEIC picture, which cannot be read; copy it again"):
        decode(encoded(COLOUR, "HEIF")[:200])


def test_without_pillow_heif_the_line_names_the_extra():
    code = (
        "import sys; sys.modules['pillow_heif'] = None\nfrom dreamteacher.data.decode import SUFFIXES, UNREAD, BadPicture, decode\n"
        "print(UNREAD['.heic'], '.heic' in SUFFIXES)\n"
        "try: decode(bytes(3) + b'\\x18ftypheic' + bytes(4) + b'mif1heic')\nexcept BadPicture as error: print(error)"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    remedy = 'pip install "dreamteacher[heic]"'
    assert lines == [f"{remedy} False", f"picture is a HEIC picture, which cannot be read; {remedy}"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html>404 not found</html>", "an HTML page"),
        (b"\n<!DOCTYPE html><p>", "an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="">', "an SVG drawing"),
        (b"<svg width='1'/>", "an SVG drawing"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML text"),
        (b"%PDF-1.4 ...", "a PDF"),
        (b"8BPS\0\1", "a Photoshop file"),
        (bytes(128) + b"DICM\2\0", "a DICOM file"),
        (struct.pack(">I", 20) + b"ftypisom....", "a video"),
        (b"\xff\x0a\xfa\x1f", "a JPEG XL picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS, .*git lfs pull"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "an AppleDouble file"),
        (b"\x1f\x8b\x08\0abc", "a compressed file"),
        (b"PK\3\4", "a compressed file"),
        (b"\x93NUMPY\1\0", "a NumPy array"),
        (bytes(100), "nothing but zero bytes"),
        (b'{"error": "quota"}', "a JSON text"),
        (b"class,file\n1,2\n", "a text"),
        (encoded(COLOUR, "JPEG")[:20], "a JPEG"),
        (b"\x9c\x11\x80", "not a picture in a known format"),
    ],
)
def test_what_is_no_picture_is_named(data, words):
    with pytest.raises(BadPicture, match=words) as caught:
        decode(data)
    assert "0x" not in caught.value.reason


def test_frames_of_animations_are_counted_and_previews_are_not():
    other = [Image.new("RGB", COLOUR.size, colour) for colour in ("blue", "red")]
    for form, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        assert decode(encoded(COLOUR, form, save_all=True, append_images=other, **options)).frames == 3, form
        assert decode(encoded(COLOUR, form, **options)).frames == 1, form
    mpo = bytearray(encoded(COLOUR, "MPO", save_all=True, append_images=other))
    assert decode(bytes(mpo)).frames == 1  # Pillow writes them as of no kind, as phones write gain maps
    assert Image.open(io.BytesIO(mpo)).n_frames == 3
    index = mpo.index(b"MPF\0")
    first = mpo.rindex(struct.pack("<L", 0x030000), index, index + 90)
    for entry in (first + 16, first + 32):
        mpo[entry : entry + 4] = struct.pack("<L", 0x020002)  # another eye's
    assert decode(bytes(mpo)).frames == 3


def test_a_gif_that_breaks_off_behind_its_first_picture_is_read():
    data = encoded(COLOUR, "GIF", save_all=True, append_images=[Image.effect_noise((200, 200), 90)] * 3)
    assert decode(data[: len(data) // 2]).image.shape == RAMP.shape


def test_each_unread_suffix_says_what_to_do():
    assert {".dcm", ".cr2", ".nef", ".dng", ".psd", ".svg", ".jxl", ".czi", ".svs", ".pdf", ".npy", ".exr"} <= set(UNREAD)
    for suffix, remedy in UNREAD.items():
        assert suffix == suffix.lower() and suffix.startswith(".") and suffix not in SUFFIXES
        assert len(remedy) > 10
