"""Frames: one decoder that agrees with OpenCV's, and refuses what it cannot read whole."""

from __future__ import annotations

import io
import struct
import zlib
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from edge.contract.errors import CameraError
from edge.contract.frames import MAX_PIXELS, Frame, decode_image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

ORIENTATION = 0x0112
NOISE = np.random.default_rng(5).integers(0, 256, (48, 64, 3), np.uint8)


def smooth() -> Bytes:
    """A picture that JPEG keeps well: a different ramp in each channel."""
    rows, columns = np.mgrid[:48, :64]
    return np.stack([rows * 5, columns * 3, 200 - rows - columns], axis=2).astype(np.uint8)


def file_of(pixels: NDArray[Any], kind: str, **options: Any) -> bytes:  # noqa: ANN401
    """The bytes of a picture, RGB or grey, written by Pillow."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, **options)
    return file.getvalue()


def converted(mode: str, kind: str) -> bytes:
    """The bytes of `smooth` in another of Pillow's modes."""
    file = io.BytesIO()
    Image.fromarray(smooth()).convert(mode).save(file, format=kind)
    return file.getvalue()


def refused(data: bytes) -> CameraError:
    with pytest.raises(CameraError, match=r"^roof\.jpg: ") as caught:
        decode_image(data, where="roof.jpg")
    assert caught.value.fault == "unreadable"
    return caught.value


@pytest.mark.data
@pytest.mark.parametrize("folder", ["agulhas_floes", "inland_water"])
def test_real_jpegs_are_decoded_as_opencv_decodes_them(icecam_data: Path, folder: str) -> None:
    pictures = sorted((icecam_data / folder / "images").glob("*.jpg"))[:3]
    assert len(pictures) == 3
    for picture in pictures:
        expected = cv2.imread(str(picture), cv2.IMREAD_COLOR)
        assert expected is not None
        found = decode_image(picture.read_bytes(), where=picture.name)
        assert found.dtype == np.uint8
        assert found.shape == expected.shape
        assert found.flags["C_CONTIGUOUS"]
        # Two JPEG decoders may round differently.
        assert np.abs(found.astype(int) - expected.astype(int)).mean() <= 2


def test_a_png_is_decoded_exactly_blue_first() -> None:
    data = file_of(NOISE, "PNG")
    found = decode_image(data, where="x")
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert expected is not None
    assert np.array_equal(found, expected)
    assert found[3, 4].tolist() == NOISE[3, 4].tolist()[::-1]


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_other_exact_formats_are_decoded_exactly(kind: str) -> None:
    assert np.array_equal(decode_image(file_of(NOISE, kind), where="x"), NOISE[:, :, ::-1])


@pytest.mark.skipif(not features.check("webp"), reason="Pillow was built without WebP")
def test_lossless_webp_is_decoded_exactly() -> None:
    data = file_of(NOISE, "WEBP", lossless=True)
    assert np.array_equal(decode_image(data, where="x"), NOISE[:, :, ::-1])


def test_grey_becomes_three_equal_channels() -> None:
    grey = NOISE[:, :, 0]
    found = decode_image(file_of(grey, "PNG"), where="x")
    assert found.shape == (48, 64, 3)
    assert all(np.array_equal(found[:, :, channel], grey) for channel in range(3))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_high_byte(kind: str) -> None:
    high = np.random.default_rng(6).integers(0, 2**16, (10, 20)).astype(np.uint16)
    found = decode_image(file_of(high, kind), where="x")
    assert np.array_equal(found[:, :, 1], high // 256)
    assert np.array_equal(found[:, :, 0], found[:, :, 2])


def test_16_bit_colour_keeps_its_high_byte_as_opencv_does() -> None:
    deep = np.random.default_rng(6).integers(0, 2**16, (10, 20, 3)).astype(np.uint16)
    written, data = cv2.imencode(".png", deep)
    assert written
    found = decode_image(data.tobytes(), where="x")
    assert np.abs(found.astype(int) - deep / 257).max() <= 1


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("RGBA", "PNG")]
)
def test_other_colour_spaces_become_bgr(mode: str, kind: str) -> None:
    found = decode_image(converted(mode, kind), where="x").astype(int)
    assert found.shape == (48, 64, 3)
    assert np.abs(found - smooth()[:, :, ::-1]).mean() < 3


def test_a_palette_gives_its_colours_not_its_indices() -> None:
    picture = Image.new("P", (4, 2))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((3, 1), 1)
    file = io.BytesIO()
    picture.save(file, format="PNG")
    found = decode_image(file.getvalue(), where="x")
    assert found[0, 0].tolist() == [30, 20, 10]
    assert found[1, 3].tolist() == [50, 100, 200]


def test_transparency_is_dropped_not_blended_into_black() -> None:
    pixels = np.dstack([NOISE, np.full(NOISE.shape[:2], 7, np.uint8)])
    assert np.array_equal(decode_image(file_of(pixels, "PNG"), where="x"), NOISE[:, :, ::-1])


# EXIF 2.31, table 6: where row 0 and column 0 of the stored picture lie in the seen one.
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = file_of(smooth(), kind, exif=exif, **options)
    found = decode_image(data, where="x").astype(int)
    expected = UPRIGHT[orientation](smooth()[:, :, ::-1])
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() <= 2


def test_the_frame_knows_its_size_as_height_and_width() -> None:
    frame = Frame(
        pixels=decode_image(file_of(NOISE, "PNG"), where="x"),
        captured_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
        time_source="clock",
    )
    assert frame.size == (48, 64)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_a_jpeg_cut_short_is_refused_never_filled_with_grey(
    share: float,
    progressive: bool,  # noqa: FBT001
) -> None:
    data = file_of(NOISE, "JPEG", quality=90, progressive=progressive)
    decode_image(data, where="roof.jpg")
    problem = refused(data[: int(len(data) * share)])
    assert f"{int(len(data) * share)} bytes" in str(problem)


@pytest.mark.data
def test_a_real_picture_cut_anywhere_is_refused(icecam_data: Path) -> None:
    picture = min((icecam_data / "agulhas_floes" / "images").glob("*.jpg"))
    data = picture.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.95, 0.999):
        refused(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_other_formats_cut_short_are_refused(kind: str, share: float) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(NOISE, kind, **options)
    refused(data[: int(len(data) * share)])


def bomb(width: int, height: int, *, whole: bool) -> bytes:
    """A small black 1-bit PNG that is huge, or says so (PNG specification, section 11.2.2)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    lines = zlib.compress(bytes(height * (1 + -(-width // 8)))) if whole else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    )


def test_a_whole_picture_with_a_few_pixels_too_many_is_refused_and_one_with_fewer_is_not() -> None:
    assert MAX_PIXELS < 10_001 * 10_000
    refused(bomb(10_001, 10_000, whole=True))
    assert decode_image(bomb(4_000, 1_000, whole=True), where="x").shape == (1_000, 4_000, 3)


@pytest.mark.parametrize(
    ("width", "height"),
    [(12_000, 12_000), (60_000, 60_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)],
)
def test_a_small_file_that_claims_a_huge_picture_is_refused_before_it_is_unpacked(
    width: int, height: int
) -> None:
    refused(bomb(width, height, whole=False))


@pytest.mark.parametrize(
    "data",
    [b"", b"no picture", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"<svg/>"],
    ids=repr,
)
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    assert "0x" not in str(refused(data))


@pytest.mark.parametrize("kind", ["GIF", "EPS", "PPM", "ICO", "TGA", "PCX", "PDF"])
def test_formats_that_no_camera_writes_are_not_even_tried(kind: str) -> None:
    # Pillow would hand an EPS file to Ghostscript, which runs programs.
    refused(file_of(NOISE, kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("error")
def test_a_damaged_picture_is_a_frame_or_the_named_error_and_nothing_else(kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    whole = file_of(NOISE[:12, :16], kind, **({} if kind == "BMP" else {"exif": exif}))
    random = np.random.default_rng(11)
    for offset in [*range(min(len(whole), 200)), *random.integers(0, len(whole), 150).tolist()]:
        data = bytearray(whole)
        data[offset] ^= int(random.integers(1, 256))
        try:
            found = decode_image(bytes(data), where="x")
        except CameraError:
            continue
        assert found.dtype == np.uint8
        assert found.ndim == 3
        assert found.shape[2] == 3


def test_a_tiff_whose_tags_are_of_any_other_type_is_a_frame_or_the_named_error() -> None:
    whole = file_of(NOISE[:12, :16], "TIFF")
    (directory,) = struct.unpack_from("<I", whole, 4)
    (entries,) = struct.unpack_from("<H", whole, directory)
    for entry in range(entries):
        for kind in range(14):  # TIFF 6.0, section 2: 1 byte, 2 ASCII, … 12 double
            data = bytearray(whole)
            struct.pack_into("<H", data, directory + 2 + 12 * entry + 2, kind)
            try:
                found = decode_image(bytes(data), where="x")
            except CameraError:
                continue
            assert found.ndim == 3


@given(
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*"]),
    st.binary(max_size=200),
)
def test_any_bytes_give_a_frame_or_the_named_error(start: bytes, rest: bytes) -> None:
    try:
        found = decode_image(start + rest, where="x")
    except CameraError:
        return
    assert found.ndim == 3
