"""Pictures of more than 8 bits and TIFFs of any layout."""

import numpy as np
import pytest
from picture_files import encoded, png16, png_chunk, tiff
from PIL import Image

from dreamteacher.data.decode import BadPicture, decode

rng = np.random.default_rng(0)
RAMP = np.tile(np.linspace(100, 4095, 90), (40, 1)).astype(np.uint16)  # 12 bits of 16, brighter to the right
COLOUR = np.stack([RAMP, RAMP[:, ::-1] // 2, np.full_like(RAMP, 700)], axis=2)


def stretched(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return np.rint((values - values.min()) * (255 / (values.max() - values.min()))).astype(np.uint8)


@pytest.mark.parametrize("kind", ["png", "ppm", "tiff", "big-endian", "planes", "tiles", "deflate", "differences", "three grey bands"])
def test_sixteen_bit_colour_is_stretched_by_one_minimum_and_maximum_over_all_bands(kind):
    options = {
        "tiff": {},
        "big-endian": {"order": ">"},
        "planes": {"planar": True},
        "tiles": {"tile": 32},
        "deflate": {"deflate": True},
        "differences": {"deflate": True, "predictor": 2, "tile": 32, "order": ">"},
        "three grey bands": {"photometric": 1, "extra": (0, 0)},
    }
    if kind == "png":
        data = png16(COLOUR)
    elif kind == "ppm":
        data = b"P6\n90 40\n4095\n" + COLOUR.astype(">u2").tobytes()
    else:
        data = tiff(COLOUR, **{"photometric": 2, **options[kind]})
    picture = decode(data)
    assert np.array_equal(picture.image, stretched(COLOUR))
    assert (picture.grey, picture.lossless, picture.suffix, picture.frames) == (False, True, None, 1)


def test_grey_and_colour_of_the_same_values_look_the_same():
    grey, colour = decode(encoded(Image.fromarray(RAMP), "PNG")), decode(png16(np.dstack([RAMP] * 3)))
    assert np.array_equal(grey.image, colour.image)
    assert len(np.unique(colour.image)) == 90


def test_values_that_fill_their_range_stay_as_they_are():
    full = rng.integers(0, 65536, (30, 40, 3)).astype(np.uint16)
    full[0, 0], full[0, 1] = 0, 65535
    assert np.abs(decode(png16(full)).image.astype(int) - full / 257).max() <= 0.5


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_any_number_type_and_number_of_bands_is_read(dtype, bands):
    values = (rng.random((40, 50, bands)) * 100).astype(dtype)
    picture = decode(tiff(values, deflate=True, predictor=3 if dtype == "float32" else 1))
    assert np.array_equal(picture.image, np.broadcast_to(stretched(values[..., : 3 if bands > 2 else 1]), picture.image.shape))
    assert picture.grey == (bands < 3)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_depths_are_read(bits):
    values = rng.integers(0, 1 << bits, (20, 37, 3)).astype(np.uint16)
    assert np.array_equal(decode(tiff(values, photometric=2, bits=bits)).image, stretched(values))


def test_seven_bands_of_eight_bits_are_their_first_three_as_they_are():
    values = rng.integers(40, 90, (30, 40, 7)).astype(np.uint8)
    for planar in (False, True):
        assert np.array_equal(decode(tiff(values, planar=planar, extra=(0,) * 6)).image, values[..., :3])


def test_white_is_zero():
    assert np.array_equal(decode(tiff(RAMP[..., None], photometric=0)).image[..., 0], 255 - stretched(RAMP))


def test_no_data_by_gdals_tag_sets_no_end_of_the_stretch_and_becomes_black():
    terrain = (100 + 40 * rng.random((32, 48, 1))).astype(np.float32)
    for marker, text in ((-9999.0, b"-9999\0"), (np.finfo(np.float32).min, b"-3.40282346638529e+38 \0"), (np.nan, b"nan\0")):
        holes = terrain.copy()
        holes[:8] = marker
        image = decode(tiff(holes, tags={42113: (2, text)})).image[..., 0]
        assert not image[:8].any()
        assert np.array_equal(image[8:], stretched(terrain[8:, :, 0]))


def test_no_data_of_integers_and_of_colour():
    holes = COLOUR.copy()
    holes[:8] = 65535
    holes[10, 10, 0] = 4200  # the marker must be in all bands
    image = decode(tiff(holes, photometric=2, tags={42113: (2, b"65535\0")})).image
    assert not image[:8].any()
    assert np.array_equal(image[8:], stretched(holes[8:]))
    eight = np.where(rng.random((20, 20, 3)) < 0.5, 0, 90).astype(np.uint8)
    assert np.array_equal(decode(tiff(eight, photometric=2, tags={42113: (2, b"0\0")})).image, eight)


@pytest.mark.parametrize("bands", [1, 3])
def test_the_transparent_value_of_a_sixteen_bit_png_is_no_data(bands):
    values = np.dstack([RAMP] * bands)
    values[:4] = 0xFFFF
    image = decode(png16(values, png_chunk(b"tRNS", b"\xff\xff" * bands))).image
    assert not image[:4].any()
    assert np.array_equal(image[4:, :, 0], stretched(RAMP[4:]))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, -3.4028235e38])
def test_values_that_measure_nothing_need_no_tag(odd):
    values = np.linspace(-1, 1, 1200, dtype=np.float32).reshape(20, 20, 3)
    values[3, 3, 1] = odd
    image = decode(tiff(values, photometric=2)).image
    assert (image.max(), image[3, 3, 1]) == (255, 0)
    assert np.array_equal(image[4:], stretched(np.append(values[4:], [-1, 1]))[:-2].reshape(16, 20, 3))
    with pytest.raises(BadPicture, match="no finite value"):
        decode(tiff(np.full((8, 8, 1), np.nan, np.float32)))


FOREST = np.zeros((64, 64, 4), np.uint8) + np.array([40, 80, 30, 0], np.uint8)
FOREST[..., 3] = rng.integers(60, 200, (64, 64))  # near infrared


@pytest.mark.parametrize("extra", [None, (0,)])
@pytest.mark.parametrize("planar", [False, True])
def test_a_fourth_band_that_is_not_called_transparency_is_dropped(extra, planar):
    picture = decode(tiff(FOREST, photometric=2, extra=extra, planar=planar))
    assert np.array_equal(picture.image, FOREST[..., :3])
    assert picture.warnings == ("bands_left_out",)
    deep = FOREST.astype(np.uint16) * 20
    assert np.array_equal(decode(tiff(deep, photometric=2, extra=extra, planar=planar)).image, stretched(deep[..., :3]))


def gdal(*names: str, item: str = "COLORINTERP") -> dict[int, tuple[int, bytes]]:
    """GDAL's metadata, which names bands."""
    items = "".join(f'<Item name="{item}" sample="{i}" role="{item.lower()}">{name}</Item>' for i, name in enumerate(names))
    return {42112: (2, f"<GDALMetadata>{items}</GDALMetadata>\0".encode())}


@pytest.mark.parametrize("item", ["COLORINTERP", "DESCRIPTION"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", [False, True])
def test_bands_that_are_named_red_green_and_blue_are_these_whatever_their_order(item, dtype, planar):
    satellite = FOREST[..., [3, 2, 1, 0]].astype(dtype) * (np.iinfo(dtype).max // 255)  # near infrared, blue, green, red
    picture = decode(tiff(satellite, extra=(0, 0, 0), planar=planar, tags=gdal("Undefined", "Blue", "green", "Red", item=item)))
    assert np.array_equal(picture.image, FOREST[..., :3] if dtype == np.uint8 else stretched(satellite[..., [3, 2, 1]]))
    assert picture.warnings == ("bands_left_out",)


@pytest.mark.parametrize("names", [("Blue", "Green", "Green", "Red"), ("Gray", "Undefined", "Undefined", "Undefined"), ("Red", "Green")])
def test_names_that_do_not_say_all_three_colours_say_nothing(names):
    assert np.array_equal(decode(tiff(FOREST, extra=(0,), photometric=2, tags=gdal(*names))).image, FOREST[..., :3])


def test_a_second_band_beside_grey_is_dropped_unless_it_is_transparency():
    two = FOREST[..., [1, 3]]
    assert np.array_equal(decode(tiff(two)).image, np.full((64, 64, 3), 80))
    assert decode(tiff(two)).warnings == ("bands_left_out",)
    assert np.array_equal(decode(tiff(two, extra=(0,))).image, np.full((64, 64, 3), 80))
    assert decode(tiff(two, extra=(2,))).image.max() > 100


def test_a_band_that_is_called_transparency_and_does_not_look_like_it_brings_a_warning():
    picture = decode(tiff(FOREST, photometric=2, extra=(2,)))
    assert picture.warnings == ("alpha_is_not_transparency",)
    assert np.abs(picture.image[0, 0] - (FOREST[0, 0, :3] * (a := FOREST[0, 0, 3] / 255) + 255 * (1 - a))).max() <= 1
    real = FOREST.copy()
    real[..., 3] = 255
    real[:20, :, 3], real[20, :, 3] = 0, np.arange(64)  # an anti-aliased edge
    picture = decode(tiff(real, photometric=2, extra=(2,)))
    assert picture.warnings == ()
    assert (picture.image[:20] == 255).all()
    real[..., 3] = 0
    assert decode(tiff(real, photometric=2, extra=(2,))).warnings == ("wholly_transparent",)


@pytest.mark.parametrize("opaque", [255, 4095, 65535])
@pytest.mark.parametrize("kind", ["tiff", "png", "grey png"])
def test_sixteen_bit_transparency_is_composed_on_white(kind, opaque):
    values = np.dstack([COLOUR, np.full_like(RAMP, opaque)])
    values[:10] = 60_000  # counts for nothing, as nobody sees it
    values[:10, :, 3] = 0
    if kind != "tiff":
        values[10:, :, 3] = 65535
    if kind == "grey png":
        values = values[..., [0, 3]]
    image = decode(tiff(values, photometric=2, extra=(2,)) if kind == "tiff" else png16(values)).image
    assert (image[:10] == 255).all()
    assert np.array_equal(image[10:], np.broadcast_to(stretched(values[10:, :, :-1]), image[10:].shape))


def test_each_full_picture_of_a_stack_is_counted_and_no_reduced_copy_or_mask():
    page, small = RAMP[..., None], RAMP[::2, ::2, None]
    assert decode(tiff(*[page] * 20)).frames == 20
    pyramid = bytearray(tiff(page, small, page, tags={254: (4, (0,))}))
    places = [i for i in range(len(pyramid)) if pyramid[i : i + 8] == b"\xfe\0\4\0\1\0\0\0"]
    for place, kind in zip(places, (0, 1, 4), strict=True):
        pyramid[place + 8] = kind
    assert decode(bytes(pyramid)).frames == 1
    pyramid[places[0] + 8], pyramid[places[2] + 8] = 1, 0  # the first is a thumbnail: the third is the picture
    assert decode(bytes(pyramid)).frames == 1
    assert decode(tiff(page, tags={270: (2, b"ImageJ=1.53t\nimages=300\nslices=300\n\0")})).frames == 300


def test_a_thumbnail_that_comes_first_is_not_the_picture():
    small, page = np.full((8, 8, 3), 9, np.uint8), rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)
    data = bytearray(tiff(small, page, photometric=2, tags={254: (4, (0,))}))
    data[data.index(b"\xfe\0\4\0\1\0\0\0") + 8] = 1
    assert np.array_equal(decode(bytes(data)).image, page)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            tiff(np.ones((8, 8, 2), np.complex64)),
            r"a TIFF of 2 bands of 64-bit complex, which is not read; .*gdal_translate -b 1 -scale -ot Byte",
        ),
        (tiff(np.ones((8, 8, 5), np.uint16), tags={259: (3, (34712,))}), r"5 bands of 16-bit unsigned integer, compressed by JPEG 2000"),
        (tiff(np.ones((8, 8, 1), np.uint16), photometric=32803), r"1 band of 16-bit unsigned integer, a camera's raw sensor \(DNG\)"),
        (tiff(np.ones((8, 8, 3), np.uint16), tags={258: (3, (5, 6, 5))}), "different depths"),
    ],
)
def test_a_tiff_that_is_not_read_is_described_with_a_way_out(data, words):
    with pytest.raises(BadPicture, match=words):
        decode(data)


@pytest.mark.parametrize("deflate", [False, True])
def test_damaged_and_huge_deep_tiffs_are_refused(deflate):
    data = tiff(COLOUR, photometric=2, deflate=deflate)
    for cut in (9, len(data) // 2):
        with pytest.raises(BadPicture):
            decode(data[:8] + data[8 + cut :])
    with pytest.raises(BadPicture, match="too large: 60000 x 60000"):
        decode(tiff(COLOUR, photometric=2, tags={256: (4, (60_000,)), 257: (4, (60_000,))}))
    with pytest.raises(BadPicture, match="need more than"):  # a million pixels of a thousand bands
        decode(tiff(np.ones((4, 4, 1000), np.uint16), tags={256: (4, (1000,)), 257: (4, (1000,))}), max_pixels=2_000_000)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_tiffs_are_turned_upright(orientation):
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    upright = Image.fromarray(RAMP)
    stored = np.asarray(upright.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else upright)
    picture = decode(tiff(np.dstack([stored] * 3), photometric=2, tags={274: (3, (orientation,))}))
    assert np.array_equal(picture.image[..., 0], stretched(RAMP))
    assert picture.orientation == orientation


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_tiff_that_ends_a_few_bytes_early_is_damaged_and_not_filled_with_anything_else(dtype, compression):
    shape = (64, 64, 3) if dtype == np.uint8 else (64, 64)  # of three bands the depths, which lie at the end, are lost first
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    data = encoded(Image.fromarray(values), "TIFF", compression=compression)
    whole = decode(data).image
    for cut in (1, 20, 100):
        try:
            assert np.array_equal(decode(data[:-cut]).image, whole)
        except BadPicture as error:
            assert error.reason.startswith(("damaged picture", "picture is a damaged TIFF"))


def test_sizes_of_strips_that_reach_beyond_the_picture_cost_nothing():
    values = np.random.default_rng(0).integers(0, 65536, (20, 16, 1)).astype(np.uint16)
    for pixels in (values, values.astype(np.uint8)):
        plain = tiff(pixels)
        size = 16 * 16 * pixels.itemsize
        assert np.array_equal(decode(tiff(pixels, tags={279: (4, (size, size))})).image, decode(plain).image)


@pytest.mark.parametrize(("marker", "dtype"), [(-9999, np.int16), (-32768, np.int16), (-9999, np.float32), (-99999, np.int32)])
def test_the_usual_marker_of_no_data_sets_no_end_of_the_stretch_though_no_tag_declares_it(marker, dtype):
    values = np.arange(64, dtype=dtype).reshape(8, 8, 1) * 10
    marked = values.copy()
    marked[0, :2] = marker
    shown = decode(tiff(marked)).image
    assert shown[0, 0, 0] == 0
    assert (shown[0, 2, 0], shown[7, 7, 0]) == (0, 255)
    assert shown[4, 0, 0] == round((320 - 20) * 255 / 610)


def test_the_lowest_value_counts_where_others_are_near_it():
    values = np.linspace(-32768, 32767, 64).astype(np.int16).reshape(8, 8, 1)
    assert decode(tiff(values)).image[0, 1, 0] == 4
