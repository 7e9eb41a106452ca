"""Draw the two pictures whose values golden.json holds.

    python benchmarks/draw_golden_pictures.py
    fastvlm-onnx export demo -o DIR --precision fp32,fp16,int8,web,int4,fast
    cp DIR/golden.json fastvlm_onnx/demo/golden/

New pictures change golden.json of every package. Another version of Pillow may write other bytes
of the same pictures.
"""

from pathlib import Path

from PIL import Image, ImageDraw

FOLDER = Path(__file__).resolve().parent.parent / "fastvlm_onnx/demo/golden"
EXIF_ORIENTATION = 274
TURNED = 6  # a viewer turns the picture by 90 degrees; the runtime does not


def draw_shapes() -> Image.Image:
    """A blue square and a red circle; the circle is transparent to a viewer."""
    image = Image.new("RGBA", (96, 64), (236, 228, 208, 255))
    draw = ImageDraw.Draw(image)
    draw.rectangle((10, 12, 45, 47), fill=(30, 70, 200, 255))
    draw.ellipse((56, 20, 87, 51), fill=(220, 40, 40, 96))
    return image


def draw_band() -> Image.Image:
    """A row of shapes, fine stripes and a color gradient, wider than 1024 pixels."""
    image = Image.new("RGB", (1088, 96), (206, 216, 226))
    draw = ImageDraw.Draw(image)
    draw.rectangle((64, 16, 223, 79), fill=(20, 140, 60))
    draw.ellipse((320, 12, 391, 83), fill=(240, 150, 20))
    draw.polygon([(480, 84), (540, 10), (600, 84)], fill=(120, 40, 150))
    for x in range(672, 800, 4):
        draw.rectangle((x, 16, x + 1, 79), fill=(10, 10, 10))
    for i in range(128):
        draw.line((880 + i, 16, 880 + i, 79), fill=(2 * i, 255 - 2 * i, 90))
    return image


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = TURNED
    draw_shapes().save(FOLDER / "shapes.png", optimize=True)
    draw_band().save(FOLDER / "band.jpg", quality=88, exif=exif)


if __name__ == "__main__":
    main()
