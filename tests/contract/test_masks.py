"""Masks as PNG: other readers see the same values, and nothing but an 8-bit grey PNG is read."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from edge.contract.errors import BundleError, DeliveryError
from edge.contract.masks import MAX_MASK_PIXELS, decode_png, encode_png, stray_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

GREY, RGB, PALETTE, GREY_ALPHA = 0, 2, 3, 4
MASKS = npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk (PNG specification, section 5.3)."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, lines: bytes, *, depth: int = 8, colour: int = GREY) -> bytes:
    """A PNG from its filtered scan lines, written by hand."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"PLTE", bytes(range(30))) if colour == PALETTE else b"")
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


@pytest.mark.protocol("mask-1")
@given(MASKS)
def test_cv2_reads_from_the_png_the_values_that_were_written(mask: Bytes) -> None:
    read = cv2.imdecode(np.frombuffer(encode_png(mask), np.uint8), cv2.IMREAD_UNCHANGED)
    assert read is not None
    assert read.dtype == np.uint8
    assert np.array_equal(read, mask)


@given(MASKS)
def test_what_cv2_wrote_and_what_we_wrote_is_read_back_unchanged(mask: Bytes) -> None:
    written, foreign = cv2.imencode(".png", mask)
    assert written
    for data in (foreign.tobytes(), encode_png(mask)):
        read = decode_png(data)
        assert read.dtype == np.uint8
        assert np.array_equal(read, mask)


@pytest.mark.protocol("mask-1")
def test_the_header_says_8_bit_grey_and_nothing_else() -> None:
    data = encode_png(np.zeros((3, 5), np.uint8))
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    assert (width, height, depth, colour) == (5, 3, 8, GREY)


def test_a_png_written_by_hand_keeps_its_values() -> None:
    data = png(3, 2, b"\x00\x00\x01\x02" + b"\x00\xff\x02\x01")
    assert decode_png(data).tolist() == [[0, 1, 2], [255, 2, 1]]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), np.bool_),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros(4, np.uint8),
    ],
    ids=["int64", "bool", "three axes", "empty", "one axis"],
)
def test_an_array_that_is_no_mask_is_not_written(array: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="a mask is uint8"):
        encode_png(array)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("depth", "colour", "lines"),
    [
        (8, PALETTE, b"\x00\x00\x01\x02" * 2),
        (8, RGB, b"\x00" + bytes(9) + b"\x00" + bytes(9)),
        (8, GREY_ALPHA, b"\x00" + bytes(6) + b"\x00" + bytes(6)),
        (16, GREY, b"\x00" + bytes(6) + b"\x00" + bytes(6)),
        (4, GREY, b"\x00\x01\x20" * 2),
        (2, GREY, b"\x00\x18" * 2),
        (1, GREY, b"\x00\x40" * 2),
    ],
    ids=["palette", "RGB", "grey and alpha", "16-bit", "4-bit", "2-bit", "1-bit"],
)
def test_a_png_whose_values_are_not_bytes_of_class_indices_is_refused(
    depth: int, colour: int, lines: bytes
) -> None:
    data = png(3, 2, lines, depth=depth, colour=colour)
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) is not None
    with pytest.raises(DeliveryError, match="8-bit grey PNG"):
        decode_png(data)


def test_a_jpeg_of_a_mask_is_refused() -> None:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, format="JPEG")
    with pytest.raises(DeliveryError, match="not a readable PNG"):
        decode_png(file.getvalue())


def test_a_whole_mask_with_too_many_pixels_is_refused() -> None:
    data = png(8_000, 6_251, bytes(8_001 * 6_251))
    assert MAX_MASK_PIXELS < 8_000 * 6_251
    with pytest.raises(DeliveryError, match="8000x6251"):
        decode_png(data)


@pytest.mark.parametrize(("width", "height"), [(12_000, 8_000), (65_000, 65_000)])
def test_a_small_file_that_claims_huge_sides_is_refused_before_it_is_unpacked(
    width: int, height: int
) -> None:
    assert width * height > MAX_MASK_PIXELS
    with pytest.raises(DeliveryError):
        decode_png(png(width, height, b""))


def test_the_error_is_of_the_kind_that_was_asked_for_and_says_where() -> None:
    with pytest.raises(BundleError, match=r"^golden/0\.png: not a readable PNG"):
        decode_png(b"no", where="golden/0.png", error=BundleError)


SMALL = encode_png(np.tile(np.array([0, 1, 2, 255], np.uint8), (12, 3)))


@pytest.mark.parametrize("length", range(len(SMALL)))
def test_a_png_cut_short_is_refused_or_whole(length: int) -> None:
    whole = decode_png(SMALL)
    try:
        read = decode_png(SMALL[:length])
    except DeliveryError:
        return
    # The end mark alone, and the checksum before it, carry no pixels.
    assert length > SMALL.index(b"IDAT")
    assert np.array_equal(read, whole)


@pytest.mark.parametrize("offset", range(len(SMALL)))
def test_a_damaged_byte_gives_the_named_error_and_never_another_mask(offset: int) -> None:
    whole = decode_png(SMALL)
    for flip in (0x01, 0x10, 0x80, 0xFF):
        data = bytearray(SMALL)
        data[offset] ^= flip
        try:
            read = decode_png(bytes(data))
        except DeliveryError:
            continue
        assert np.array_equal(read, whole)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_give_the_named_error_or_a_mask(data: bytes, signed: bool) -> None:  # noqa: FBT001
    try:
        read = decode_png((b"\x89PNG\r\n\x1a\n" if signed else b"") + data)
    except DeliveryError:
        return
    assert read.ndim == 2


@given(MASKS, st.integers(1, 255))
def test_stray_values_are_those_that_are_neither_class_nor_255(mask: Bytes, classes: int) -> None:
    seen = {int(value) for row in mask for value in row}
    assert stray_values(mask, classes) == sorted(v for v in seen if v >= classes and v != 255)
