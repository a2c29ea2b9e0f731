"""An image file -> an upright image in 8-bit RGB, by one of ``DECODERS``. Pillow is the reference and the default.

``fast`` (``--decoder fast``) has simplejpeg decode JPEG files: the same library and settings, and the same pixels (tested), without
Pillow's own form of an image in between, since ``fast`` also resizes in another way (``virb.data.transforms``). Pillow still reads the
header, and decodes what is no JPEG or is refused by simplejpeg; these are counted (``REFUSED``).

What happens to what is not plain RGB:

- EXIF orientation is applied; EXIF that cannot be read is ignored (the pixels are fine).
- Grey, black-and-white, palette, CMYK and YCbCr are converted by Pillow.
- Transparency is dropped, not composited: the colours stored in the file are kept, as torchvision and timm do.
- 16 bit per channel keeps the high byte (``value >> 8``). Pillow does so for 16-bit colour; we do it for 16-bit grey,
  which Pillow itself would clip to white.
- 32-bit integers must lie in 0..65535 and count as 16 bit. Floating-point pixels have no defined range and are an error.
- Of an animation or a file of many pages, the first is read.
"""

from __future__ import annotations

import errno
import io
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from virb.errors import BadImage, UnreadImage

# What Pillow's plugins raise on broken files, beyond OSError.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, Image.DecompressionBombError)
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The same of arrays (height, width, channel).
_UPRIGHT_ARRAY: Mapping[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, 3),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
Pixels = Image.Image | np.ndarray  # 8-bit RGB; an array is (height, width, 3)
PixelsT = TypeVar("PixelsT", bound=Pixels)


class Count:
    """Counts across threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self) -> None:
        with self._lock:
            self.value += 1


DECODED = Count()  # images that this process decoded or drew, failed tries included, files of targets not: counted where it happens
REFUSED = Count()  # those of them that ``fast`` was asked for and Pillow decoded


def read_rgb(path: str) -> Image.Image:
    """The image of a file, upright, 8-bit RGB. Raises BadImage, naming the file, when it cannot be decoded, UnreadImage when it cannot be
    read: the bytes come first, so that what goes wrong after that is the image's own."""
    return decode_rgb(_content(path), path)


def read_pixels(path: str, decoder: str) -> Pixels:
    """The same by one of ``DECODERS``."""
    return DECODERS[decoder](_content(path), path)


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        DECODED.add()
        raise unread(path, error) from None


def decode_rgb(data: bytes, source: str) -> Image.Image:
    """The same of a file's bytes; ``source`` is what BadImage names."""
    DECODED.add()
    with opened(io.BytesIO(data), source) as image:
        return _whole(image)


def decode_fast(data: bytes, source: str) -> Pixels:
    """The same pixels, as an array where simplejpeg decodes the file, and else as Pillow does."""
    import simplejpeg  # an extra: settings say so where it is missing

    DECODED.add()
    with opened(io.BytesIO(data), source) as image:
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            with suppress(ValueError):  # it refuses the file; what Pillow makes of it counts
                found: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
                if found.shape[:2] == (image.height, image.width):
                    turn = _UPRIGHT_ARRAY.get(_orientation(image))
                    return found if turn is None else np.ascontiguousarray(turn(found))
        REFUSED.add()
        return _whole(image)


DECODERS: Mapping[str, Callable[[bytes, str], Pixels]] = {"pillow": decode_rgb, "fast": decode_fast}


def _whole(image: Image.Image) -> Image.Image:
    image.load()  # before EXIF: in PNG it may stand after the pixels
    return to_rgb(upright(image))


def read_target(path: str) -> Image.Image:
    """The same of a file that is a target: it does not count as an image."""
    with opened(path) as image:
        return _whole(image)


def read_size(path: str) -> tuple[int, int]:
    """(height, width) of what ``read_rgb`` gives of the file, by its header alone where that says it. Raises BadImage."""
    return _size(path, path, lambda: Path(path).read_bytes())


def decode_size(data: bytes, source: str) -> tuple[int, int]:
    """The same of what ``decode_rgb`` gives."""
    return _size(io.BytesIO(data), source, lambda: data)


def _size(file: str | io.BytesIO, source: str, content: Callable[[], bytes]) -> tuple[int, int]:
    with opened(file, source) as image:
        if image.format == "PNG" and not _may_be_turned(content()):
            return image.height, image.width
        if image.format == "TIFF":
            image.load()  # Pillow turns these by itself, at some time until then
        turned = _orientation(image) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def opened(file: str | Path | io.BytesIO, source: str | None = None) -> Iterator[Image.Image]:
    """A file, or its bytes, as Pillow opens it; whatever goes wrong with it inside the ``with`` is a BadImage that names the file, or
    ``source``: an UnreadImage where the system says that it cannot read."""
    source = str(file) if source is None else source
    try:
        with Image.open(file) as image:
            yield image
    except UnidentifiedImageError:
        raise BadImage(f"{source}: is not an image that can be read") from None
    except _DECODE_ERRORS as error:
        if isinstance(error, OSError) and bad_or_unread(error) is UnreadImage:
            raise unread(source, error) from None
        raise BadImage(f"{source}: cannot be decoded ({error or type(error).__name__})") from error


def bad_or_unread(error: Exception) -> type[BadImage]:
    """What an error of opening or reading a file is: the system's have a number, while those of a library that finds no image in what it
    read have none. EINVAL is a broken file's offset, to which the system cannot seek."""
    return UnreadImage if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL) else BadImage


def unread(source: str, error: OSError) -> UnreadImage:
    """What the system says of a file that it cannot read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UnreadImage(f"{source}: does not exist")
    if isinstance(error, PermissionError):
        return UnreadImage(f"{source}: may not be read (permission denied)")
    return UnreadImage(f"{source}: cannot be read ({error.strerror or error})")


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    method = _UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _may_be_turned(content: bytes) -> bool:
    """Whether a PNG has any of the chunks that can say so. They may stand after the pixels, which Pillow would decode to get there."""
    return any(word in content for word in (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp"))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow to 8-bit RGB, by the rules at the top of this file. ValueError where there is no rule."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no defined range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit integer pixels outside 0..65535")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns on the direct way from a palette; the colours are the same
    return image.convert("RGB")


def crop_box(image: PixelsT, box: Sequence[float] | np.ndarray) -> PixelsT:
    """The part inside (x0, y0, x1, y1) pixels, rounded as Pillow's ``crop`` does, clipped to the image; ValueError when that is empty."""
    if isinstance(image, np.ndarray):
        x0, y0, x1, y1 = pixels_of_box(box, *image.shape[:2])
        return image[y0:y1, x0:x1]  # type: ignore[return-value]
    return image.crop(pixels_of_box(box, image.height, image.width))  # type: ignore[return-value]


def pixels_of_box(box: Sequence[float] | np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of what ``crop_box`` takes of an image of ``height`` x ``width``."""
    x0, y0, x1, y1 = (round(float(edge)) for edge in box)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if x1 <= x0 or y1 <= y0:
        edges = ", ".join(f"{float(edge):g}" for edge in box)
        raise ValueError(f"box ({edges}) has no pixel of an image of {width} x {height}")
    return x0, y0, x1, y1
