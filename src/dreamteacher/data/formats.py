"""Picture formats: suffixes, readers, and the names of formats that cannot be read."""

from __future__ import annotations

import logging
import posixpath
import re

from PIL import Image, features

try:
    from pillow_heif import register_heif_opener
except ImportError:  # an extra, as the libraries in its wheel are LGPL and GPL
    HEIF = False
else:
    register_heif_opener()
    HEIF = True

# Only the readers that are needed, as each parser is attack surface. (The JPEG reader also takes the MPO files of some phones.)
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"})
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm"}
_INSTALL_HEIC = 'pip install "dreamteacher[heic]"'
_OPTIONAL = (  # reader, suffixes, whether it is installed, how to get it
    ("AVIF", {".avif", ".avifs"}, features.check("avif"), "use a Pillow that is built with AVIF (11.3 or later)"),
    ("JPEG2000", {".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}, features.check("jpg_2000"), "use a Pillow that is built with OpenJPEG"),
    ("HEIF", {".heic", ".heif", ".hif", ".heics", ".heifs"}, HEIF, _INSTALL_HEIC),
)

_AS_PNG, _RAW = "export it as PNG or TIFF", "develop it to JPEG or 16-bit TIFF (darktable-cli, dcraw -T)"
_SLIDE = "cut it into tiles (vips dzsave, OpenSlide) and ingest those"
_MICROSCOPE = "export its planes as TIFF (Bio-Formats: bfconvert)"
_PAGES = "export its pages as PNG (pdftoppm -png)"
_RENDER = "render it as PNG (rsvg-convert)"
_FRAMES = "cut it into pictures (ffmpeg -i FILE %06d.png)"
_ARRAY = "save each array as PNG or TIFF (PIL.Image.fromarray)"
# Suffixes of picture formats that cannot be read -> remedy. (Without those that are as often labels or tables: .mat, .h5, .npz, .pfm.)
UNREAD = {
    **dict.fromkeys((".dcm", ".dicom", ".nii", ".mha", ".nrrd"), "export its slices as 16-bit PNG or TIFF"),
    **dict.fromkeys((".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"), _RAW),
    **dict.fromkeys((".psd", ".psb", ".xcf", ".kra", ".tga", ".dds", ".pcx", ".sgi", ".qoi", ".exr", ".hdr"), _AS_PNG),
    **dict.fromkeys((".jxl", ".jxr", ".wdp", ".bpg", ".jls", ".emf", ".wmf", ".ecw", ".sid"), _AS_PNG),
    **dict.fromkeys((".fits", ".fit", ".fts", ".npy"), _ARRAY),
    **dict.fromkeys((".svs", ".ndpi", ".mrxs", ".scn", ".vms"), _SLIDE),
    **dict.fromkeys((".czi", ".nd2", ".lif", ".lsm", ".oib", ".oif", ".vsi", ".ims", ".zvi"), _MICROSCOPE),
    **dict.fromkeys((".pdf", ".eps", ".ai", ".djvu"), _PAGES),
    **dict.fromkeys((".svg", ".svgz"), _RENDER),
}
for _name, _suffixes, _is_there, _remedy in _OPTIONAL:
    if _is_there:
        FORMATS += (_name,)
        SUFFIXES |= _suffixes
    else:
        UNREAD |= dict.fromkeys(_suffixes, _remedy)

NOT_A_LIST = {  # suffix of files that are not lists of paths -> what they are, and the remedy
    **dict.fromkeys((".zip", ".rar", ".7z", ".gz", ".bz2", ".xz", ".zst"), "an archive; unpack it and name the folder"),
    **dict.fromkeys((".json", ".xml", ".yaml", ".yml", ".csv", ".tsv", ".parquet"), "a table or labels; name the folder of the pictures"),
    **dict.fromkeys((".h5", ".hdf5", ".npz", ".npy", ".mat", ".pkl"), "arrays; save them as pictures and name their folder"),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv"), "a video; cut it into pictures (ffmpeg -i FILE %06d.png) and name their folder"),
    **dict.fromkeys(SUFFIXES, "a picture; name the folder that it lies in"),
}

_AGAIN = "copy it again"
_AVIF, _JP2, _HEIC = (
    (thing, _AGAIN if is_there else remedy)
    for thing, (_, _, is_there, remedy) in zip(("an AVIF picture", "a JPEG 2000 picture", "a HEIC picture"), _OPTIONAL, strict=True)
)
_VIDEO, _CAMERA = ("a video", _FRAMES), ("a camera's raw picture", _RAW)
_BRANDS = {  # of ISO media files: the 4 letters after "ftyp"
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2"), _HEIC),
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
    b"crx ": _CAMERA,
}
_MAGIC = (  # pattern of the first bytes, format, remedy
    (rb"\0*\Z", "nothing but zero bytes", _AGAIN),
    (rb"version https://git-lfs", "a pointer of Git LFS", "fetch what it points to: git lfs pull"),
    (rb"outs:\s|md5: ", "a pointer of DVC", "fetch what it points to: dvc pull"),
    (rb"\0\x05\x16[\0\x07]", "an AppleDouble file, which macOS writes beside the real one", "remove it (dot_clean)"),
    (rb"(?i)\s*(<!doctype html|<html)", "an HTML page", "download the picture again"),
    (rb"(?is)\s*(<\?xml.{0,2000})?(<!--.{0,2000})?<svg|<!doctype svg", "an SVG drawing", _RENDER),
    (rb"\s*<\?xml|\s*<Error>", "an XML text", "download the picture again"),
    (rb"%PDF", "a PDF", _PAGES),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", _PAGES),
    (rb"8BPS", "a Photoshop file", _AS_PNG),
    (rb"gimp xcf", "a GIMP file", _AS_PNG),
    (rb"(?s).{128}DICM", "a DICOM file", UNREAD[".dcm"]),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture", "convert it to PNG (djxl)"),
    (rb"\xff\xd8\xff\xf7", "a JPEG-LS picture", _AS_PNG),
    (rb"\xff\xd8", "a JPEG", "decode it once with another program (djpeg) or copy it again"),
    (rb"\x89PNG|\x8aMNG|\x8bJNG", "a PNG", _AGAIN),
    (rb"GIF8|BM|RIFF....WEBP|P[1-6]\s", "the beginning of a picture", _AGAIN),
    (rb"II[*+]\0|MM\0[*+]", "a damaged TIFF", _AGAIN),
    (rb"II\xbc\x01", "a JPEG XR picture", _AS_PNG),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", *_JP2),
    (rb"v/1\x01", "an OpenEXR picture", _AS_PNG),
    (rb"#\?(RADIANCE|RGBE)", "a Radiance HDR picture", _AS_PNG),
    (rb"SIMPLE  =", "a FITS file", _ARRAY),
    (rb"\x93NUMPY", "a NumPy array", _ARRAY),
    (rb"\x89HDF|CDF[\x01\x02\x05]", "an HDF5 or NetCDF file", _ARRAY),
    (rb"ZISRAWFILE", "a Zeiss CZI file", _MICROSCOPE),
    (rb"\xda\xce\xbe\x0a", "a Nikon ND2 file", _MICROSCOPE),
    (rb"FUJIFILM|FOVb|IIU\0|IIR[OS]|MMOR", *_CAMERA),
    (rb"DDS |\0\0[\x01\x02]\0|qoif|\x0a[\0-\x05]\x01|\x01\xda", "a picture of a kind that is not read", _AS_PNG),
    (rb"\x1a\x45\xdf\xa3|RIFF....AVI |\0\0\x01[\xb3\xba]", *_VIDEO),
    (rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "a compressed file or archive", "unpack it"),
    (rb"\s*[\[{]", "a JSON text", "keep only pictures under names of pictures"),
    (rb"[\t\r\n\x20-\x7e]+\Z", "a text", "keep only pictures under names of pictures"),
)


def why_unread(name: str) -> str | None:
    """Why a picture of this suffix cannot be read; None if it can, or is not a picture."""
    suffix = posixpath.splitext(name)[1].lower()
    return f"pictures of this kind ({suffix}) are not read: {UNREAD[suffix]}" if suffix in UNREAD and suffix not in SUFFIXES else None


class BadPicture(Exception):
    """The bytes are not a usable picture or mask; `reason` is written to quarantine.csv."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def describe_unreadable(data: bytes, what: str) -> str:
    """One line for bytes that no reader accepts: their format by magic bytes, and the remedy."""
    head = data[:4096]
    known = [_BRANDS.get(head[8:12], _VIDEO)] if head[4:8] == b"ftyp" else []
    known += [(thing, remedy) for pattern, thing, remedy in _MAGIC if re.match(pattern, head, re.DOTALL)]
    if known:
        return f"{what} is {known[0][0]}, which cannot be read; {known[0][1]}"
    return f"not a {what} in a known format ({', '.join(FORMATS)})"


logging.getLogger("PIL").addHandler(logging.NullHandler())  # errors are reported once, with the file's name
Image.init()  # registers all readers, so that results do not depend on the first picture
