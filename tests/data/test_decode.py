import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import encoded, png16, tiff
from PIL import Image, ImageCms, ImageFile

from dreamteacher.data.decode import BadPicture, decode
from dreamteacher.data.masks import decode_mask

RAMP = np.stack([np.tile(np.arange(0, 240, 5, np.uint8), (32, 1))] * 3, axis=2)  # 32 x 48, brighter to the right
RAMP[:16, :, 0] = 200  # the upper half is red
COLOUR = Image.fromarray(RAMP)


def close(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize(
    ("form", "options", "largest", "suffix", "lossless"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 2, "jpg", False),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 2, "jpg", False),
        ("PNG", {}, 0, "png", True),
        ("WEBP", {"lossless": True}, 0, None, True),
        ("WEBP", {"quality": 95}, 4, None, False),
        ("TIFF", {}, 0, None, True),
        ("TIFF", {"compression": "tiff_lzw"}, 0, None, True),
        ("TIFF", {"compression": "jpeg"}, 6, None, False),
        ("BMP", {}, 0, None, True),
        ("PPM", {}, 0, None, True),
    ],
)
def test_colour_pictures_of_every_format_come_back(form, options, largest, suffix, lossless):
    picture = decode(encoded(COLOUR, form, **options))
    assert picture.image.dtype == np.uint8
    assert close(picture.image, RAMP) <= largest
    assert (picture.suffix, picture.lossless, picture.grey) == (suffix, lossless, False)


def test_cmyk_jpeg_has_the_colours_of_its_rgb_original():
    picture = decode(encoded(COLOUR.convert("CMYK"), "JPEG", quality=95))
    assert close(picture.image, RAMP) < 4
    assert picture.mode == "CMYK"
    assert picture.suffix is None


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form, orientation):
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = COLOUR.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else COLOUR
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    picture = decode(encoded(stored, form, exif=exif, **quality))
    assert close(picture.image, RAMP) <= 2
    assert picture.suffix == ({"JPEG": "jpg", "PNG": "png"}.get(form) if orientation == 1 else None)


def test_sixteen_bit_grey_is_stretched_as_imagej_shows_it():
    twelve_bits = np.linspace(100, 4095, 32 * 48).reshape(32, 48).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        picture = decode(encoded(Image.fromarray(twelve_bits), form))
        assert picture.image.min() == 0
        assert picture.image.max() == 255
        assert np.array_equal(picture.image[..., 0], np.rint((twelve_bits - 100) * (255 / 3995)).astype(np.uint8))
        assert picture.suffix is None
        assert picture.grey
    constant = decode(encoded(Image.fromarray(np.full((20, 20), 700, np.uint16)), "PNG"))
    assert not constant.image.any()


def test_transparency_is_composed_on_white():
    layer = Image.new("RGBA", (20, 20), (255, 0, 0, 255))
    layer.paste((0, 0, 0, 0), (0, 0, 20, 10))
    palette = layer.convert("RGB").quantize(4)
    for data in (encoded(layer, "PNG"), encoded(layer, "WEBP", lossless=True), encoded(layer, "TIFF")):
        image = decode(data).image
        assert (image[:10] == 255).all()
        assert (image[10:] == (255, 0, 0)).all()
    black = palette.getpixel((0, 0))
    assert (decode(encoded(palette, "PNG", transparency=black)).image[:10] == 255).all()
    faint = Image.merge("LA", [Image.new("L", (20, 20), 0), Image.new("L", (20, 20), 128)])
    assert decode(encoded(faint, "PNG")).image[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("mode", ["L", "1", "P", "YCbCr", "LA"])
def test_other_pixel_types_become_rgb(mode):
    form = "TIFF" if mode == "YCbCr" else "PNG"
    expected = np.asarray(COLOUR.convert("L" if mode == "LA" else mode).convert("RGB"))
    picture = decode(encoded(COLOUR.convert(mode), form))
    assert close(picture.image, expected) <= 1
    assert picture.suffix == ("png" if mode == "L" else None)


def test_cielab_tiffs_become_rgb():
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.buildTransform(*profiles, "RGB", "LAB").apply(COLOUR)
    assert close(decode(encoded(lab, "TIFF")).image, RAMP) < 1


def test_first_frame_of_an_animation_is_taken():
    other = Image.new("RGB", COLOUR.size, "blue")
    for form, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        picture = decode(encoded(COLOUR.quantize(64) if form == "GIF" else COLOUR, form, save_all=True, append_images=[other], **options))
        assert close(picture.image, RAMP) < 8
        assert picture.suffix is None


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(form, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, form)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(BadPicture):
        decode(data[: int(len(data) * share)])


def test_empty_files_are_refused_in_words():
    with pytest.raises(BadPicture, match="empty"):
        decode(b"")


def test_a_decompression_bomb_is_refused_by_its_header_alone(monkeypatch):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 10_000_000)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadPicture, match="too large: 60000 x 60000"):
        decode(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(BadPicture, match="too large"):
        decode(encoded(COLOUR, "BMP"), max_pixels=32 * 48 - 1)


def test_too_small_pictures_are_refused():
    with pytest.raises(BadPicture, match="too small: 48 x 32"):
        decode(encoded(COLOUR, "PNG"), min_side=33)
    assert decode(encoded(COLOUR, "PNG"), min_side=32).image.shape == (32, 48, 3)


def test_masks_keep_their_class_ids():
    ids = np.arange(48, dtype=np.uint8).reshape(6, 8)
    palette = Image.fromarray(ids, "P")
    palette.putpalette(bytes(range(255, -1, -1)) * 3)
    for image in (Image.fromarray(ids), palette, Image.fromarray(ids.astype(np.uint16))):
        assert np.array_equal(decode_mask(encoded(image, "PNG")), ids)
    assert np.array_equal(decode_mask(encoded(Image.fromarray(ids % 2 == 1), "PNG")), ids % 2)
    with pytest.raises(BadPicture, match="in colours"):
        decode_mask(encoded(COLOUR, "PNG"))
    with pytest.raises(BadPicture, match="value 300"):
        decode_mask(encoded(Image.fromarray(np.full((4, 4), 300, np.uint16)), "PNG"))


SEEDS = [
    encoded(COLOUR, "JPEG"),
    encoded(COLOUR, "PNG"),
    encoded(COLOUR, "WEBP"),
    encoded(COLOUR, "TIFF", compression="tiff_lzw"),
    encoded(COLOUR, "BMP"),
    encoded(COLOUR, "GIF"),
    encoded(COLOUR, "PPM"),
    encoded(COLOUR, "AVIF"),
    encoded(COLOUR, "JPEG2000"),
    png16(RAMP.astype(np.uint16) * 20),
    tiff(RAMP.astype(np.uint16) * 20, photometric=2, deflate=True, predictor=2),
    tiff(RAMP.astype(np.float32), tile=16, planar=True, extra=(0, 0)),
]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # oddities of metadata
@settings(max_examples=250)
@given(
    st.one_of(st.binary(max_size=200), st.tuples(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)))))
)
def test_arbitrary_bytes_give_a_picture_or_a_reason_and_nothing_else(drawn):
    data = drawn
    if isinstance(drawn, tuple):  # a real file with some bytes changed reaches further into the parsers than noise does
        damaged = bytearray(drawn[0])
        for place, value in drawn[1]:
            damaged[place % len(damaged)] = value
        data = bytes(damaged)
    for function in (decode, decode_mask):
        try:
            result = function(data, max_pixels=1_000_000)
        except BadPicture as error:
            assert error.reason
            continue
        image = result if isinstance(result, np.ndarray) else result.image
        assert image.dtype == np.uint8
        assert image.ndim == (2 if function is decode_mask else 3)
        assert image.size > 0


LOW_MEMORY = """
import io, resource
import numpy as np
from PIL import Image
from dreamteacher.data.decode import BadPicture, decode
from dreamteacher.data.masks import decode_mask
files = {}
for form, options in (("JPEG", {}), ("PNG", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True}), ("GIF", {})):
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 3000)).save(buffer, form, **options)
    files[form] = buffer.getvalue()
used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 8_000_000, -1))
for form, data in files.items():
    for read in (decode, decode_mask):
        try:
            read(data)
        except MemoryError:
            continue
        except BadPicture as error:
            print(form, error.reason)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_a_good_picture_is_not_called_damaged_when_memory_is_short():
    done = subprocess.run([sys.executable, "-c", LOW_MEMORY], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


@pytest.mark.parametrize("error", [OSError("out of memory error when reading image file"), MemoryError()])
def test_a_damaged_picture_that_claims_too_much_memory_is_quarantined(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("dreamteacher.data.decode.load", fail)
    with pytest.raises(BadPicture, match="damaged picture"):
        decode(b"some bytes", max_pixels=1000)
