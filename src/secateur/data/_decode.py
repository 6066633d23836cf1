"""Encoded images (PNG, JPEG, …) as uint8 tensors: decoded once and cached, or streamed where there are too many.

An image that would take more memory than `IMAGE_BYTES` and `BYTES_PER_BYTE` allow is refused before it is decoded.

>>> import io
>>> from PIL import Image
>>> file = io.BytesIO(); Image.new("L", (6, 4), 200).save(file, "PNG")
>>> decode(file.getvalue(), size=(2, 3), channels=3).shape
torch.Size([3, 2, 3])
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.nn import functional

from secateur.core.atomic_files import atomic_path
from secateur.data._splits import ImageMemory, Source
from secateur.errors import DataError, OptionError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Encoded", "cache_folder", "convert", "decode", "open_source", "pair", "shape_in_file"]

IN_MEMORY = 1 << 30
"""Splits of at most this number of bytes of pixels are decoded once and held in memory; larger ones are streamed."""

IMAGE_BYTES = 48 << 20
"""Bytes that one decoded or resized image may take, besides `BYTES_PER_BYTE` for each byte of its file. The environment
variable SECATEUR_IMAGE_BYTES sets another number. The other 16 MiB of what a file may cost are for its reader."""

BYTES_PER_BYTE = 8

# The formats that are read. Pillow knows others, of which some start programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

_GREY = ("1", "L", "I", "I;16")  # Pillow's words for images of one channel

_CHUNK = 512


class Encoded(Protocol):
    """The encoded images of one split: what every kind of dataset but the embedded one reads."""

    labels: torch.Tensor

    def read(self, index: int) -> bytes:
        """The file of one image."""
        ...

    def describe(self, index: int) -> str:
        """Where the image comes from, for messages."""
        ...

    def digest(self) -> str:
        """A hash of the content."""
        ...


def pair(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width) from one number or two.

    >>> pair(32), pair((28, 20)), pair(None)
    ((32, 32), (28, 20), None)
    """
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if height < 1 or width < 1:
        raise OptionError(f"size: expected at least 1 pixel each way, got {height}x{width}")
    return height, width


def decode(data: bytes, size: tuple[int, int] | None, channels: int | None) -> torch.Tensor:
    """One image as uint8 [C, H, W].

    Args:
        data: The file's bytes.
        size: (height, width) to resize to. Proportions are kept: the shorter side fits, and the middle is cut out.
        channels: 1, 3, or None for those of the file.

    Returns:
        The pixels.

    Raises:
        DataError: The image would take more memory than is allowed.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        grey = channels == 1 or (channels is None and image.mode in _GREY)
        mode = "L" if grey else "RGB"
        _check_pixels(image.width, image.height, len(data), "is", _bytes_of_pixel(image, mode, size is None))
        image.load()
        picture = image if image.mode == mode else image.convert(mode)
    if size is not None and (picture.height, picture.width) != size:
        height, width = size
        ratio = max(height / picture.height, width / picture.width)
        wide, high = max(width, round(picture.width * ratio)), max(height, round(picture.height * ratio))
        _check_pixels(wide, high, len(data), f"becomes, before {width} x {height} are cut out of it,", 4)
        copies = 1 if picture is image else 2
        _check_resizing((picture.width, picture.height), (wide, high), len(data), copies)
        left, top = (wide - width) // 2, (high - height) // 2
        resized = picture.resize((wide, high), Image.Resampling.BILINEAR)
        picture = resized.crop((left, top, left + width, top + height))
    pixels = np.array(picture, dtype=np.uint8)
    return torch.from_numpy(pixels[None] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def shape_in_file(encoded: Encoded) -> tuple[int, int, int] | None:
    """(channels, height, width) of the first image as its file has it, without decoding it; None where it has none.

    Args:
        encoded: The images of a split.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded.read(0)), formats=_FORMATS) as image:
            return 1 if image.mode in _GREY else 3, image.height, image.width
    except Exception:  # a broken image is an error where it is decoded
        return None


def _bytes_of_pixel(image: Image.Image, mode: str, whole: bool) -> int:
    """The most bytes a pixel takes while an image is decoded: Pillow keeps colours in four bytes.

    Args:
        image: The image, not yet decoded.
        mode: What it is converted to.
        whole: Whether all of it is copied into a tensor, by way of an array.
    """
    decoded = 8 if image.format == "WEBP" else 4  # its decoder fills a buffer of its own first
    converted = 0 if image.mode == mode else 4
    return max(decoded + converted, 4 + converted + 6 * whole)


_RESIZING = 4 << 20  # bytes that resizing may take besides those of the picture


def _check_resizing(before: tuple[int, int], after: tuple[int, int], size: int, copies: int) -> None:
    """Refuse an image whose resizing takes more bytes than its file may ask for.

    Pillow holds the picture, what it becomes when its width alone is changed, and the result; a pointer for each row of
    each; and for each new row and column the weights of the old ones.

    Args:
        before: (width, height) of the picture.
        after: (width, height) that it is resized to.
        size: The bytes of its file.
        copies: How many pictures of the old size are held.
    """
    (width, height), (wide, high) = before, after
    pictures = 4 * (copies * width * height + wide * height + wide * high) + 8 * (
        (copies + 1) * height + high
    )
    weights = sum(new * (2 * math.ceil(max(1.0, old / new)) + 2) for old, new in zip(before, after)) * 8
    taken, most = pictures + weights, _most(size) + _RESIZING
    if taken > most:
        raise DataError(
            f"an image of {size:,} bytes is resized from {width:,} x {height:,} to {wide:,} x {high:,} pixels: "
            f"expected that to take at most {most:,} bytes, got {taken:,}; leave it out, or allow more bytes with "
            "the environment variable SECATEUR_IMAGE_BYTES"
        )


def _most(size: int) -> int:
    """The most bytes that decoding a file of this size may take."""
    return int(os.environ.get("SECATEUR_IMAGE_BYTES", IMAGE_BYTES)) + BYTES_PER_BYTE * size


def _check_pixels(width: int, height: int, size: int, what: str, each: int) -> None:
    """Refuse an image of more bytes than its file may ask for; a pixel takes `each` bytes."""
    most = _most(size)
    if each * width * height > most:
        raise DataError(
            f"an image of {size:,} bytes {what} {width:,} x {height:,} pixels: expected at most {most // each:,} "
            f"pixels, which take {each} bytes each; leave it out, or allow more bytes with the environment variable "
            "SECATEUR_IMAGE_BYTES"
        )


def convert(images: torch.Tensor, size: tuple[int, int] | None, channels: int | None) -> torch.Tensor:
    """Images in another size (bilinear) and with 1 or 3 channels (repeated, or the luma of BT.601).

    Args:
        images: uint8 [N, C, H, W].
        size: (height, width), or None to keep theirs.
        channels: 1, 3, or None to keep theirs.

    Returns:
        The images.

    Raises:
        OptionError: The channels cannot be made.

    >>> convert(torch.full((2, 1, 8, 8), 9, dtype=torch.uint8), (32, 32), 3).shape
    torch.Size([2, 3, 32, 32])
    """
    if size is not None and tuple(images.shape[2:]) != size:
        scaled = [
            functional.interpolate(part.float(), size, mode="bilinear", antialias=True).round().clamp(0, 255)
            for part in images.split(_CHUNK)
        ]
        images = torch.cat([part.to(torch.uint8) for part in scaled])
    if channels is None or channels == images.shape[1]:
        return images
    if channels == 1 and images.shape[1] == 3:
        luma = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
        return (images.float() * luma).sum(1, keepdim=True).round().clamp(0, 255).to(torch.uint8)
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1).contiguous()
    raise OptionError(f"channels: cannot make {channels} channels of {images.shape[1]}; expected 1 or 3")


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder of decoded images: as given, else in $SECATEUR_CACHE, else in the user's cache.

    >>> cache_folder("here").as_posix()
    'here/images'
    """
    if given is not None:
        return Path(given) / "images"
    if os.environ.get("SECATEUR_CACHE"):
        return Path(os.environ["SECATEUR_CACHE"]) / "images"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "secateur" / "images"


class Streamed:
    """Images that are decoded each time they are fetched, by a few threads: for splits too large for memory."""

    def __init__(self, encoded: Encoded, size: tuple[int, int], channels: int):
        self.encoded, self.size, self.channels = encoded, size, channels
        self.labels = encoded.labels
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, *self.size

    def fetch(self, index: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The images of these indices, decoded now."""
        read = self._pool.map(lambda i: _one(self.encoded, i, self.size, self.channels), index.tolist())
        return torch.stack(list(read)).to(device)

    def digest(self) -> str:
        """The encoded content's hash, and how it is decoded."""
        return hashlib.sha256(f"{self.encoded.digest()}/{self.size}/{self.channels}".encode()).hexdigest()


def _one(encoded: Encoded, index: int, size: tuple[int, int] | None, channels: int | None) -> torch.Tensor:
    """One image; the error says which one could not be decoded."""
    try:
        return decode(encoded.read(index), size, channels)
    except DataError as error:
        raise DataError(f"{encoded.describe(index)}: {error}") from error
    except Exception as error:  # a reader of Pillow raises whatever a broken file leads to
        raise DataError(
            f"{encoded.describe(index)}: expected an image that Pillow can read, got {type(error).__name__}: "
            f"{error}; remove or replace it"
        ) from error


def open_source(
    encoded: Encoded,
    size: tuple[int, int] | None,
    channels: int | None,
    cache_dir: str | os.PathLike[str] | None,
    in_memory: int | None = None,
) -> Source:
    """Encoded images as a source: in memory where they fit (decoded once, then read from the cache), else streamed.

    Args:
        encoded: The images of a split.
        size: (height, width) to resize to, or None.
        channels: 1, 3 or None.
        cache_dir: Where decoded images are kept.
        in_memory: In place of `IN_MEMORY`.

    Returns:
        The source.

    Raises:
        DataError: There are no images, one cannot be decoded, or they have different sizes.
    """
    if len(encoded.labels) == 0:
        raise DataError(f"{encoded.describe(0)}: expected images, got none")
    first = _one(encoded, 0, size, channels)
    shape = tuple(first.shape)
    if first.numel() * len(encoded.labels) > (IN_MEMORY if in_memory is None else in_memory):
        return Streamed(encoded, (shape[1], shape[2]), shape[0])
    key = hashlib.sha256(f"1/{encoded.digest()}/{size}/{shape}".encode()).hexdigest()[:32]
    file = cache_folder(cache_dir) / f"{key}.safetensors"
    cached = _read_cache(file, (len(encoded.labels), *shape))
    if cached is not None:
        return ImageMemory(cached, encoded.labels)
    images = torch.empty((len(encoded.labels), *shape), dtype=torch.uint8)

    def fill(start: int) -> None:
        for index in range(start, min(start + _CHUNK, len(images))):
            image = _one(encoded, index, size, shape[0])
            if image.shape != first.shape:
                raise DataError(
                    f"{encoded.describe(index)}: expected {_shown(shape)} like the first image, got "
                    f"{_shown(tuple(image.shape))}; give size= to bring all images to one size"
                )
            images[index] = image

    if len(images) <= _CHUNK:  # too little for threads
        fill(0)
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(fill, range(0, len(images), _CHUNK)))
    _write_cache(file, images)
    return ImageMemory(images, encoded.labels)


def _shown(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} pixels with {shape[0]} channel{'s' if shape[0] > 1 else ''}"


def _read_cache(file: Path, shape: tuple[int, ...]) -> torch.Tensor | None:
    """The decoded images, or None where there are none that fit; the cache may be deleted or damaged at any time."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        images = load_file(file)["images"]
    except (OSError, SafetensorError, KeyError):
        return None
    return images if images.dtype == torch.uint8 and tuple(images.shape) == shape else None


def _write_cache(file: Path, images: torch.Tensor) -> None:
    """Keep the decoded images; that the cache cannot be written is no error."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with contextlib.suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as scratch:
            save_file({"images": images}, scratch)
