"""Decoding of photographs to upright 8-bit RGB, and reasons for refusal."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from reca.data.image_formats import BadImage
from reca.data.images import decode, resize_images, square_tensor, to_square
from reca.data.resize import Resize
from tests.unit.data.pictures import encoded, photographs, picture

EXIF_TURNS = {
    1: lambda image: image,
    2: ImageOps.mirror,
    3: lambda image: image.rotate(180),
    4: ImageOps.flip,
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),  # to be rotated 90 degrees clockwise
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


def difference(first: Image.Image, second: Image.Image) -> float:
    """Return the mean absolute difference of two images, in levels of 0 to 255."""
    assert first.size == second.size
    return float(np.abs(np.asarray(first, np.float32) - np.asarray(second, np.float32)).mean())


def reason(data: bytes, **limits: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, **limits)
    return caught.value.reason


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("JPEG", 3), ("PNG", 0), ("WEBP", 4), ("TIFF", 0), ("GIF", 10), ("BMP", 0), ("AVIF", 4)],
)
def test_formats_decode_to_rgb(kind: str, tolerance: float) -> None:
    decoded = decode(encoded(picture(), kind))
    assert decoded.mode == "RGB"
    assert difference(decoded, picture()) <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", EXIF_TURNS)
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = encoded(EXIF_TURNS[orientation](picture()), kind, exif=exif.tobytes())
    assert difference(decode(stored), picture()) < 6


def test_damaged_exif_is_ignored() -> None:
    assert decode(encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).size == (48, 32)


def test_cmyk_jpeg_decodes_to_rgb() -> None:
    assert difference(decode(encoded(picture().convert("CMYK"), "JPEG", quality=95)), picture()) < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_brightness(kind: str) -> None:
    grey = picture().convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert difference(decode(encoded(deep, kind)), grey.convert("RGB")) == 0


def test_a_dark_sixteen_bit_image_stays_dark() -> None:
    deep = Image.fromarray(np.full((20, 20), 250, np.uint16))  # below 256, but not 8-bit
    assert np.asarray(decode(encoded(deep, "PNG"))).max() == 1


def test_sixteen_bit_rgb_tiff_keeps_its_brightness() -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, np.asarray(picture()).astype(np.uint16) * 257, photometric="rgb")
    assert difference(decode(file.getvalue()), picture()) == 0


def test_float_tiff_keeps_its_brightness() -> None:
    grey = picture().convert("L")
    levels = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    assert difference(decode(encoded(levels, "TIFF")), grey.convert("RGB")) == 0
    undefined = Image.fromarray(np.full((20, 20), np.nan, np.float32))
    assert reason(encoded(undefined, "TIFF")) == "unsupported"


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_binary_and_palette_images_decode(mode: str) -> None:
    image = picture().convert(mode)
    assert difference(decode(encoded(image, "PNG")), image.convert("RGB")) == 0


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_become_white(kind: str) -> None:
    image = picture().convert("RGBA")
    alpha = np.zeros((32, 48), np.uint8)
    alpha[:, 24:] = 255
    image.putalpha(Image.fromarray(alpha))
    decoded = np.asarray(decode(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))))
    assert (decoded[:, :24] == 255).all()
    assert (decoded[:, 24:] == np.asarray(picture())[:, 24:]).all()


def test_half_transparent_grey_is_blended_with_white() -> None:
    image = Image.new("LA", (20, 20), (100, 128))
    expected = round(100 * 128 / 255 + 255 * 127 / 255)
    assert abs(int(np.asarray(decode(encoded(image, "PNG")))[0, 0, 0]) - expected) <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_colour_becomes_white(kind: str) -> None:
    image = picture().quantize(8)
    hole = image.getpixel((0, 0))
    decoded = np.asarray(decode(encoded(image, kind, transparency=hole)))
    assert (decoded[np.asarray(image) == hole] == 255).all()
    assert (decoded[np.asarray(image) != hole] < 255).any()


@pytest.mark.parametrize(("mode", "color"), [("L", 7), ("RGB", (1, 2, 3))])
def test_transparent_colour_without_palette_becomes_white(mode: str, color: int | tuple[int, int, int]) -> None:
    data = encoded(Image.new(mode, (20, 20), color), "PNG", transparency=color)
    assert (np.asarray(decode(data)) == 255).all()


@pytest.mark.parametrize(("kind", "tolerance"), [("GIF", 10), ("WEBP", 5), ("TIFF", 0), ("PNG", 0), ("AVIF", 5)])
def test_animation_decodes_to_its_first_frame(kind: str, tolerance: float) -> None:
    data = encoded(picture(seed=1), kind, save_all=True, append_images=[picture(seed=2), picture(seed=3)])
    assert difference(decode(data), picture(seed=1)) <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_truncated_file_is_refused(kind: str, share: float) -> None:
    data = encoded(picture(200, 160), kind)
    assert reason(data[: int(len(data) * share)]) == "truncated"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_damaged_file_is_refused(kind: str) -> None:
    data = bytearray(encoded(picture(200, 160), kind))
    data[len(data) // 2 : len(data) // 2 + 20] = b"\xff" * 20
    assert reason(bytes(data)) == "broken"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"The quick brown fox is a text in a file named fox.jpg.", "not-an-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not-an-image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='99' height='99'/>", "not-an-image"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "unsupported"),
        (b"\xff\xd8\xff", "truncated"),
    ],
)
def test_other_files_are_refused(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def png_header(width: int, height: int) -> bytes:
    """Return a PNG with a header of this size and almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def test_bomb_is_refused_by_its_header() -> None:
    # 10.8 GB when decoded: without the check of the header the reason would be "truncated", after a while
    assert reason(png_header(60_000, 60_000), max_pixels=50_000_000) == "too-many-pixels"
    assert reason(png_header(100, 100), max_pixels=10_000) == "truncated"


def test_pillow_guard_stays_on_for_other_readers() -> None:
    bomb = png_header(60_000, 60_000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(bomb))
    assert reason(bomb) == "too-many-pixels"


def test_limits_are_inclusive() -> None:
    data = encoded(picture(40, 20), "PNG")
    assert decode(data, max_pixels=800, min_side=20).size == (40, 20)
    assert reason(data, max_pixels=799) == "too-many-pixels"
    assert reason(data, min_side=21) == "too-small"


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "GIF", "AVIF"]), st.data())
def test_any_damage_is_reported_or_decoded(kind: str, draw: st.DataObject) -> None:
    data = bytearray(encoded(picture(), kind))
    for _ in range(draw.draw(st.integers(1, 5))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    message = ""
    try:
        decode(bytes(data), max_pixels=10**6)
    except BadImage as bad:
        message = str(bad)
    assert "0x" not in message  # no address of an object: the quarantine file is part of a hashed output


def test_photographs_keep_their_size() -> None:
    for path in photographs():
        decoded = decode(path.read_bytes(), max_pixels=10**7, min_side=16)
        assert decoded.mode == "RGB"
        assert decoded.size == Image.open(path).size


def test_square_of_the_right_size_is_unchanged() -> None:
    image = picture(24, 24)
    assert (to_square(image, 24) == np.asarray(image)).all()


def test_square_crops_the_centre() -> None:
    image = Image.new("RGB", (60, 20), "red")
    image.paste((0, 0, 255), (20, 0, 40, 20))
    assert (to_square(image, 10) == (0, 0, 255)).all()
    assert (to_square(image.rotate(90, expand=True), 10) == (0, 0, 255)).all()


def test_square_is_antialiased() -> None:
    checks = Image.fromarray(np.indices((96, 96)).sum(0).astype(np.uint8) % 2 * 255)  # finer than the result's pixels
    assert np.abs(to_square(checks, 12).astype(int) - 127).max() < 8


def test_square_tensor_is_normalised() -> None:
    images = [Image.new("RGB", (8, 8), "black"), Image.new("RGB", (30, 20), "white"), picture(64, 64)]
    tensor = square_tensor(images, 8)
    assert tensor.shape == (3, 3, 8, 8)
    assert tensor.dtype == torch.float32
    assert (tensor[0] == -1).all()
    assert (tensor[1] == 1).all()
    restored = ((tensor[2] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert (restored == to_square(images[2], 8)).all()


def test_levels_equal_those_of_torch() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = square_tensor([Image.fromarray(levels)], 16)
    assert torch.equal(tensor, torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    assert tensor.is_contiguous()


def test_stretching_keeps_the_edges() -> None:
    image = Image.new("RGB", (60, 20), "red")
    image.paste((0, 0, 255), (20, 0, 40, 20))
    stretched = to_square(image, 30, stretch=True)
    assert stretched.shape == (30, 30, 3)
    assert (stretched[:, [0, -1]] == (255, 0, 0)).all()
    assert (stretched[:, 13:17] == (0, 0, 255)).all()


@pytest.mark.parametrize("rule", ["crop", "stretch", "fit"])
def test_rules_agree_on_squares(rule: str) -> None:
    images = [picture(24, 24), picture(50, 50, 1), picture(7, 7, 2)]
    tensors = resize_images(images, Resize(rule, 24, 24, 6))
    assert torch.equal(torch.stack(list(tensors)), square_tensor(images, 24))


def test_fit_keeps_the_aspect_ratio() -> None:
    wide, tall = resize_images([picture(80, 40), picture(30, 60, 1)], Resize("fit", 24, 12, 4))
    assert wide.shape == (3, 12, 24)
    assert tall.shape == (3, 24, 12)
    expected = np.asarray(picture(80, 40).resize((24, 12), Image.Resampling.BICUBIC))
    assert (((wide + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() == expected).all()
