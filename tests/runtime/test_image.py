"""Pictures: the forms and formats that are read, the exact numbers, and the refusals."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from fastvlm_onnx import FastVLM, InputError
from fastvlm_onnx.runtime.vision.image import (
    MAX_PIXELS,
    MAX_SIDE,
    check_header,
    preprocess,
    read_picture,
)


def pixels_of(picture) -> np.ndarray:
    return preprocess(read_picture(picture), 256)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds one byte of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
class TestRefused:
    def refusal(self, picture) -> str:
        with pytest.raises(InputError) as caught:
            read_picture(picture)
        message = str(caught.value)
        assert "\n" not in message
        return message

    def test_a_path_with_no_file(self, tmp_path: Path) -> None:
        assert "absent.jpg: no such picture" in self.refusal(tmp_path / "absent.jpg")

    def test_a_folder(self, tmp_path: Path) -> None:
        assert f"{tmp_path}: is a folder, expected a regular file" in self.refusal(tmp_path)

    @pytest.mark.parametrize("picture", [None, ["a.jpg"], io.StringIO("text")])
    def test_an_object_of_another_type(self, picture: object) -> None:
        message = self.refusal(picture)
        assert message.startswith(f"the picture is a {type(picture).__name__}; expected a path")

    def test_a_text_file_named_png(self, tmp_path: Path) -> None:
        path = tmp_path / "note.png"
        path.write_text("not pixels")
        assert "note.png: not a picture" in self.refusal(path)

    def test_an_empty_file(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.png"
        path.touch()
        assert "empty.png: not a picture" in self.refusal(path)

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
    def test_a_file_that_was_cut_off(self, form: str) -> None:
        file = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
        Image.fromarray(noise).save(file, form)
        content = file.getvalue()
        self.refusal(content[: len(content) // 2])

    def test_a_compression_that_pillow_does_not_know(self) -> None:
        file = io.BytesIO()
        Image.new("RGB", (4, 4)).save(file, "BMP")
        content = bytearray(file.getvalue())
        content[30:34] = struct.pack("<I", 9)  # the method of compression
        assert "cannot be decoded" in self.refusal(content)

    @pytest.mark.parametrize("form", ["DDS", "ICO", "TGA", "SGI", "PCX", "JPEG2000"])
    def test_a_format_that_is_not_on_the_list(self, form: str) -> None:
        file = io.BytesIO()
        Image.new("RGB", (32, 32)).save(file, form)
        assert "expected JPEG, PNG, WebP, GIF, BMP, TIFF or PPM" in self.refusal(file.getvalue())

    @pytest.mark.skipif(sys.platform == "win32", reason="the stand-in program is a shell script")
    def test_an_eps_file_named_png_starts_no_ghostscript(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = tmp_path / "started"
        ghostscript = tmp_path / "gs"
        ghostscript.write_text(f"#!/bin/sh\ntouch {started}\n")
        ghostscript.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # the result of an earlier search
        path = tmp_path / "picture.png"
        path.write_text(
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
        )
        assert "picture.png: not a picture" in self.refusal(path)
        assert not started.exists()

    def test_a_picture_of_a_billion_pixels(self) -> None:
        assert f"{MAX_PIXELS:,}" in self.refusal(png_header(40_000, 25_000))

    def test_a_picture_below_the_limit_is_not_refused_for_its_size(self) -> None:
        # It is refused for being cut off, not for its size.
        assert "cannot be decoded" in self.refusal(png_header(10_000, 10_000))

    def test_a_picture_without_pixels(self) -> None:
        assert "0 x 5" in self.refusal(Image.new("RGB", (0, 5)))
        assert "4 x 0" in self.refusal(np.zeros((0, 4, 3), np.uint8))

    def test_a_side_beyond_the_limit(self) -> None:
        assert f"at most {MAX_SIDE:,} pixels" in self.refusal(png_header(1, MAX_SIDE + 1))
        image = Image.new("L", (MAX_SIDE + 1, 1))
        assert f"{MAX_SIDE + 1} x 1 pixels" in self.refusal(image)

    def test_an_array_with_too_many_pixels(self) -> None:
        array = np.broadcast_to(np.uint8(0), (20_000, 10_000, 3))
        assert f"{MAX_PIXELS:,}" in self.refusal(array)

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((4, 4), np.uint8),
            np.zeros((4, 4, 4), np.uint8),
            np.zeros((4, 4, 3), np.float32),
        ],
        ids=["grey", "four channels", "float"],
    )
    def test_an_array_of_another_kind(self, array: np.ndarray) -> None:
        assert "uint8 [height, width, 3]" in self.refusal(array)


def test_every_form_of_one_picture_gives_the_same_pixels(picture: Path) -> None:
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    with picture.open("rb") as file:
        forms = [str(picture), picture.read_bytes(), file, image, np.asarray(image)]
        expected = pixels_of(picture)
        for form in forms:
            np.testing.assert_array_equal(pixels_of(form), expected)


def test_pixel_values_are_bytes_over_255_rounded_once() -> None:
    # 256 x 256 so that resizing changes nothing; each value of a byte occurs.
    array = np.repeat(np.arange(256, dtype=np.uint8).reshape(256, 1), 256, axis=1)
    pixel_values = pixels_of(np.stack([array] * 3, axis=-1))
    assert pixel_values.shape == (1, 3, 256, 256)
    assert pixel_values.dtype == np.float32
    expected = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    np.testing.assert_array_equal(pixel_values[0, 1, :, 7], expected)


@pytest.mark.parametrize("size", [(256, 129), (129, 256)])
def test_borders_are_black_and_the_smaller_one_comes_first(size: tuple[int, int]) -> None:
    pixel_values = pixels_of(Image.new("RGB", size, (255, 255, 255)))[0, 0]
    across = pixel_values if size[0] > size[1] else pixel_values.T
    # 127 rows to fill: 63 before the picture, 64 behind it.
    assert not across[:63].any()
    assert (across[63:192] == 1).all()
    assert not across[192:].any()


def test_the_whole_picture_is_kept() -> None:
    array = np.zeros((300, 700, 3), np.uint8)
    array[:, :10] = array[:, -10:] = 255
    pixel_values = pixels_of(array)[0, 0]
    assert pixel_values[128, 0] > 0.9
    assert pixel_values[128, -1] > 0.9


def test_the_longest_picture_is_padded_without_a_square_in_memory() -> None:
    # The square would have 4 billion pixels.
    line = Image.new("RGB", (MAX_SIDE, 1024), (255, 255, 255))
    found = pixels_of(line)[0, 0]
    assert (found[126:130] > 0.9).all()
    assert not found[:120].any()
    assert not found[136:].any()


@pytest.mark.parametrize("image_size", [256, 768, 1024])
@pytest.mark.parametrize(
    "size", [(1, 900), (900, 1), (3, 2000), (41, 700), (700, 41), (255, 256), (5, 2), (2, 5)]
)
def test_thin_pictures_have_the_pixels_of_the_whole_square(
    size: tuple[int, int], image_size: int
) -> None:
    array = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image, side = Image.fromarray(array), max(size)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = preprocess(square, image_size)
    np.testing.assert_array_equal(preprocess(image, image_size), expected)


def test_the_black_borders_of_a_thin_picture_are_not_resized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resize = Image.Image.resize
    pixels = 0

    def counting_resize(image: Image.Image, *args: object, **options: object) -> Image.Image:
        nonlocal pixels
        pixels += image.width * image.height
        return resize(image, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", counting_resize)
    pixels_of(Image.new("RGB", (1, MAX_SIDE), (255, 255, 255)))
    # 4,295 million with the borders.
    assert pixels < 500_000_000


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats_on_the_list_are_found_by_content(form: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.eps"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(path, form)
    red, green, _ = read_picture(path).getpixel((4, 4))
    assert red > 250
    assert green < 5


def test_avif_is_read_where_pillow_has_the_decoder() -> None:
    Image.init()
    if "AVIF" not in Image.SAVE:
        pytest.skip("this build of Pillow has no AVIF decoder")
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(file, "AVIF")
    assert read_picture(file.getvalue()).size == (8, 8)


def test_transparent_pixels_show_the_colour_under_them() -> None:
    clear_red = Image.new("RGBA", (256, 256), (255, 0, 0, 0))
    assert (pixels_of(clear_red)[0, 0] == 1).all()


# --- forms and modes -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [bytearray, memoryview])
def test_bytearray_and_memoryview_are_read_as_a_file(picture: Path, form: type) -> None:
    assert read_picture(form(picture.read_bytes())).tobytes() == read_picture(picture).tobytes()


def test_a_file_is_read_from_its_position_and_left_open(picture: Path) -> None:
    file = io.BytesIO(b"before" + picture.read_bytes())
    file.seek(6)
    assert read_picture(file).tobytes() == read_picture(picture).tobytes()
    assert not file.closed


def test_an_array_need_not_be_contiguous() -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    expected = read_picture(np.ascontiguousarray(array[::2, ::-1]))
    assert read_picture(array[::2, ::-1]).tobytes() == expected.tobytes()


def test_a_pillow_image_is_not_changed(picture: Path) -> None:
    with Image.open(picture) as image:
        image.load()
        before = (image.mode, image.size, image.tobytes())
        preprocess(read_picture(image), 128)
        assert (image.mode, image.size, image.tobytes()) == before


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_shows_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    file = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=50, **options)
    assert read_picture(file.getvalue()).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_only_when_asked_for(orientation: int) -> None:
    upright = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (6, 10, 3), np.uint8), "RGB"
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    upright.save(file, "PNG", exif=exif)
    assert read_picture(file.getvalue()).tobytes() == upright.tobytes()
    turned = read_picture(file.getvalue(), orient=True)
    assert turned.size == ((10, 6) if orientation < 5 else (6, 10))
    assert (turned.tobytes() == upright.tobytes()) == (orientation == 1)


def test_an_answer_ignores_exif_rotation_unless_asked_for(model: FastVLM, picture: Path) -> None:
    with Image.open(picture) as opened:
        upright = opened.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    file = io.BytesIO()
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(file, "PNG", exif=exif)

    def answer(picture: object, **options: bool) -> list[int]:
        return model.generate(picture, "Describe the image.", **options).token_ids

    assert answer(file.getvalue(), orient=True) == answer(upright)
    assert answer(file.getvalue()) == answer(stored)
    assert answer(stored) != answer(upright)


def test_a_header_is_checked_without_the_rest_of_the_file(picture: Path) -> None:
    check_header(picture.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a picture in a known format"):
        check_header(b"text")


def test_a_header_of_too_many_pixels_is_refused(picture: Path) -> None:
    with Image.open(picture) as opened:
        pixels = opened.width * opened.height
    check_header(picture.read_bytes(), max_pixels=pixels)
    with pytest.raises(InputError, match=f"more than {pixels - 1:,}"):
        check_header(picture.read_bytes(), max_pixels=pixels - 1)
