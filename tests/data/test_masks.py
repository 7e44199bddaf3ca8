"""Class masks as other tools write them."""

import struct
import zlib

import numpy as np
import pytest
from picture_files import encoded, png16, png_chunk, tiff
from PIL import Image

from dreamteacher.data.decode import BadPicture
from dreamteacher.data.masks import decode_mask, is_lossy

IDS = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
COLOURS = [(0, 0, 0), (128, 64, 128), (255, 0, 0)]
PAINTED = np.array(COLOURS, np.uint8)[IDS]
OPAQUE = np.full((6, 8), 255, np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(np.dstack([IDS] * 3)), "PNG"),
        encoded(Image.fromarray(np.dstack([IDS] * 3 + [OPAQUE])), "PNG"),
        encoded(Image.fromarray(np.dstack([IDS, OPAQUE]), "LA"), "PNG"),
        encoded(Image.fromarray(np.dstack([IDS] * 3)), "WEBP", lossless=True),
        png16(IDS[..., None].astype(np.uint16)),
        png16(np.dstack([IDS] * 3).astype(np.uint16)),
        tiff(IDS[..., None].astype(np.int32)),
        tiff(IDS[..., None].astype(np.uint16), deflate=True, order=">"),
        tiff(IDS[..., None].astype(np.float32)),
        tiff(np.dstack([IDS] * 4), photometric=2),  # a fourth band that is no transparency
    ],
)
def test_ids_in_one_channel_or_in_equal_channels(data):
    assert np.array_equal(decode_mask(data), IDS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_ids_of_less_than_eight_bits_are_not_spread(bits):
    ids = IDS % (1 << bits)
    rows = np.packbits(((ids[..., None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8).reshape(6, -1), axis=1)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 6, bits, 0, 0, 0, 0)), (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
    assert np.array_equal(decode_mask(png), ids)
    assert np.array_equal(decode_mask(tiff(ids[..., None], bits=bits)), ids)


def palette(ids: np.ndarray) -> Image.Image:
    image = Image.fromarray(ids, "P")
    image.putpalette(bytes(np.array(COLOURS[::-1], np.uint8)))  # the colours in another order than the classes'
    return image


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(PAINTED), "PNG"),
        encoded(Image.fromarray(np.dstack([PAINTED, OPAQUE])), "PNG"),
        encoded(palette(2 - IDS), "PNG"),
        encoded(palette(2 - IDS), "GIF"),
        encoded(Image.fromarray(PAINTED), "BMP"),
        tiff(PAINTED, photometric=2, planar=True),
    ],
)
def test_colours_of_a_list_are_classes(data):
    assert np.array_equal(decode_mask(data, colours=COLOURS), IDS)


def test_unknown_pixels_stay_so_where_a_tool_has_put_a_grey_palette_in_order():
    ids = np.where(IDS == 2, 255, IDS).astype(np.uint8)
    assert np.array_equal(decode_mask(encoded(Image.fromarray(ids), "GIF", optimize=True)), ids)


def test_a_palette_that_was_never_filled_says_nothing():
    image = Image.fromarray(IDS)
    image.putpalette([0] * 768)
    assert np.array_equal(decode_mask(encoded(image, "PNG")), IDS)


@pytest.mark.parametrize(
    ("form", "options"), [("TIFF", {"compression": "jpeg"}), ("JPEG2000", {"irreversible": True}), ("JPEG", {}), ("AVIF", {})]
)
def test_lossy_formats_are_known_whatever_they_lie_in(form, options):
    assert is_lossy(encoded(Image.fromarray(PAINTED), form, **options))


@pytest.mark.parametrize(("form", "options"), [("TIFF", {"compression": "tiff_lzw"}), ("JPEG2000", {}), ("WEBP", {"lossless": True})])
def test_other_formats_keep_values(form, options):
    assert not is_lossy(encoded(Image.fromarray(PAINTED), form, **options))


def test_a_palette_is_read_by_index_without_a_list():
    assert np.array_equal(decode_mask(encoded(palette(IDS), "PNG")), IDS)


def test_black_and_white_are_colours_as_others_are():
    grey = encoded(Image.fromarray(np.where(IDS == 1, 255, 0).astype(np.uint8)), "PNG")
    bilevel = encoded(Image.fromarray(IDS == 1), "PNG")
    for data in (grey, bilevel):
        assert np.array_equal(decode_mask(data, colours=[(255, 255, 255), (0, 0, 0)]), IDS != 1)
        with pytest.raises(BadPicture, match="#ffffff in 16 pixels"):
            decode_mask(data, colours=[(0, 0, 0), (128, 0, 0)])


def test_an_unknown_colour_is_named_with_its_number_of_pixels():
    with pytest.raises(BadPicture, match=r"the colour #804080 in 16 pixels, which no class in classes\.txt has$"):
        decode_mask(encoded(Image.fromarray(PAINTED), "PNG"), colours=[(0, 0, 0), (255, 0, 0)])
    with pytest.raises(BadPicture, match="and 2 other such colours"):
        decode_mask(encoded(Image.fromarray(PAINTED), "PNG"), colours=[(1, 1, 1)])


def test_colours_without_a_list_are_refused_with_a_way_out():
    with pytest.raises(BadPicture, match=r"mask is in colours; .* classes\.txt, such as: road #804080"):
        decode_mask(encoded(Image.fromarray(PAINTED), "PNG"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(Image.fromarray(np.dstack([IDS] * 3 + [IDS * 100])), "PNG"), "transparent pixels"),
        (tiff(np.full((6, 8, 1), -2, np.int16)), "value -2"),
        (tiff(np.full((6, 8, 1), 300, np.uint32)), "value 300; class ids are 0 to 254, .* numbers of classes, not of objects"),
        (png16(np.full((6, 8, 1), 65535, np.uint16)), "value 65535; .* and 1, not the largest value, for the only class"),
        (tiff(np.full((6, 8, 1), 0.5, np.float32)), "no whole numbers"),
        (tiff(IDS[..., None], IDS[..., None]), "mask holds 2 pages or frames; store class ids in one"),
        (png16(PAINTED.astype(np.uint16) * 257), "in colours"),
    ],
)
def test_masks_that_hold_no_ids_are_refused(data, words):
    with pytest.raises(BadPicture, match=words):
        decode_mask(data)


def test_sixteen_bit_colours_do_not_match_a_list():
    with pytest.raises(BadPicture, match="8-bit RGB"):
        decode_mask(png16(PAINTED.astype(np.uint16) * 257), colours=COLOURS)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.float32])
def test_minus_one_is_unknown_as_255_is(dtype):
    ids = IDS.astype(dtype)
    ids[0] = -1
    assert np.array_equal(decode_mask(tiff(ids[..., None])), [[255] * 8, *IDS[1:].tolist()])


def test_the_border_of_pascal_voc_is_unknown_unless_it_is_listed():
    border = (224, 224, 192)
    painted = PAINTED.copy()
    painted[0] = border
    data = encoded(Image.fromarray(painted), "PNG")
    assert np.array_equal(decode_mask(data, colours=COLOURS), [[255] * 8, *IDS[1:].tolist()])
    assert np.array_equal(decode_mask(data, colours=[*COLOURS, border]), [[3] * 8, *IDS[1:].tolist()])
