import io
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images import (
    StoredImage,
    centre_crop,
    decode,
    mmu_pixels,
    read_image,
    read_mmu_pixels,
    read_picture,
    to_image,
    to_tensor,
)


def test_centre_crop_takes_the_middle_square() -> None:
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, 2:6] = np.arange(16).reshape(4, 4, 1)
    assert np.array_equal(np.asarray(centre_crop(Image.fromarray(pixels), 4)), pixels[:, 2:6])
    tall = Image.fromarray(pixels.transpose(1, 0, 2).copy())
    assert np.array_equal(np.asarray(centre_crop(tall, 4)), pixels[:, 2:6].transpose(1, 0, 2))


def test_centre_crop_scales_as_cropping_and_then_scaling_by_lanczos() -> None:
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (30, 47, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = image.crop((8, 0, 38, 30)).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(centre_crop(image, 16)), np.asarray(expected))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth waves of colour under the noise of a sensor."""
    draw = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[:height, :width] / max(width, height)
    pixels = 128 + draw.normal(0, 8, (height, width, 3))
    for channel in range(3):
        for _ in range(8):
            across, down, phase = draw.normal(0, 10, 3)
            pixels[..., channel] += 25 * np.sin(across * x + down * y + phase)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def file_of(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(payload: bytes, size: int) -> torch.Tensor:
    with Image.open(io.BytesIO(payload)) as image:
        return to_tensor(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
@pytest.mark.parametrize("size", [64, 224])
def test_mmu_pixels_are_pillows_within_one_grey_level(size: int, options: dict[str, object]) -> None:
    for seed in range(3):
        payload = file_of(photo(400, 301, seed), quality=90, **options)
        difference = (mmu_pixels(payload, size).int() - by_pillow(payload, size).int()).abs()
        assert difference.max() <= 1
        assert difference.double().mean() < 0.02


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB"), ("GIF", "P")],
)
def test_mmu_pixels_of_other_kinds_of_picture(kind: str, mode: str) -> None:
    payload = file_of(photo(100, 80).convert(mode), kind)
    difference = (mmu_pixels(payload, 48).int() - by_pillow(payload, 48).int()).abs()
    assert difference.max() <= 1


def never(*_: object, **__: object) -> None:
    raise AssertionError("not to be called")


def test_plain_jpeg_files_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.images.decode", never)
    for options in ({"quality": 90}, {"progressive": True}):
        assert mmu_pixels(file_of(photo(40, 30), **options), 16).shape == (3, 16, 16)


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    payload = file_of(photo(48, 48))
    assert torch.equal(mmu_pixels(payload, 48), to_tensor(Image.open(io.BytesIO(payload)).convert("RGB")))
    assert mmu_pixels(payload, 48).is_contiguous()


def test_mmu_pixels_ignore_the_aspect() -> None:
    image = Image.new("RGB", (40, 10), "red")
    image.paste("blue", (20, 0, 40, 10))
    squeezed = mmu_pixels(file_of(image, "PNG"), 8)
    assert squeezed.shape == (3, 8, 8)
    assert squeezed[:, 4, 1].tolist() == [255, 0, 0]
    assert squeezed[:, 4, 6].tolist() == [0, 0, 255]


def test_mmu_sees_photos_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), "red")
    image.paste("blue", (16, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left side of the sensor was up
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for options in ({"exif": exif}, {"xmp": xmp}):
        payload = file_of(image, quality=95, **options)
        (tmp_path / "turned.jpg").write_bytes(payload)
        for pixels in (mmu_pixels(payload, 32), to_tensor(read_image(tmp_path / "turned.jpg"))):
            assert pixels[:, 4, 16].tolist() == pytest.approx([254, 0, 0], abs=3)
            assert pixels[:, 28, 16].tolist() == pytest.approx([0, 0, 254], abs=3)


def test_training_and_evaluation_see_the_same_pixels(tmp_path: Path) -> None:
    payload = file_of(photo(90, 70))
    (tmp_path / "photo.jpg").write_bytes(payload)
    assert torch.equal(read_mmu_pixels(tmp_path / "photo.jpg", 40), mmu_pixels(payload, 40))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_does_not_decode_is_refused_with_the_reason(kind: str) -> None:
    whole = file_of(photo(96, 64), kind)
    with pytest.raises(ValueError, match="truncated"):
        mmu_pixels(whole[: len(whole) * 3 // 4], 16)
    for nothing in (b"", b"no picture", whole[:10]):
        with pytest.raises(ValueError, match=r"no picture of a known kind|Truncated"):
            mmu_pixels(nothing, 16)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simplejpeg.decode_jpeg", never)
    payload = file_of(photo(16, 16))
    frame = payload.index(b"\xff\xc0")
    huge = payload[: frame + 5] + b"\xff\xdc\xff\xdc" + payload[frame + 9 :]
    with pytest.raises(ValueError, match="exceeds limit"):
        mmu_pixels(huge, 16)
    (tmp_path / "huge.jpg").write_bytes(huge)
    with pytest.raises(ValueError, match=r"image .*huge\.jpg does not decode .*exceeds limit"):
        read_image(tmp_path / "huge.jpg")


def test_tensors_and_back() -> None:
    pixels = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_tensor(to_image(pixels)), pixels)


def test_grey_pictures_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (3, 3), 7).save(tmp_path / "grey.png")
    assert to_tensor(read_image(tmp_path / "grey.png")).unique().tolist() == [7]


def test_pictures_stored_in_tables_are_read_as_from_files(tmp_path: Path) -> None:
    payload = file_of(photo(40, 30), "PNG")
    (tmp_path / "a.png").write_bytes(payload)
    stored = StoredImage(name="a.png", payload=payload, where="row 3 of table")
    assert read_image(stored).tobytes() == read_image(tmp_path / "a.png").tobytes()
    assert torch.equal(read_mmu_pixels(stored, 16), read_mmu_pixels(tmp_path / "a.png", 16))
    with pytest.raises(ValueError, match=r"image row 4 of table does not decode .*; replace the file"):
        read_image(StoredImage(name="b.png", payload=b"x", where="row 4 of table"))


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"image .*nowhere.jpg does not exist"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(FileNotFoundError, match=r"image .*nowhere.jpg does not exist"):
        read_mmu_pixels(tmp_path / "nowhere.jpg", 16)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"image .*text.jpg does not decode"):
        read_image(tmp_path / "text.jpg")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"image .*half.png does not decode"):
        read_image(tmp_path / "half.png")


@pytest.mark.parametrize(
    ("error", "told"), [(RuntimeError("words of a plugin"), "words of a plugin"), (AssertionError(), "AssertionError")]
)
def test_whatever_a_plugin_raises_on_a_damaged_file_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    """AVIF's plugin raises RuntimeError, which no file made here brings about in every version of its library."""

    def load(image: Image.Image) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, "PNG")
    with pytest.raises(ValueError, match=f"^{told}$"):
        decode(buffer.getvalue())


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


def rotated(*before: bytes) -> bytes:
    """Stored red over blue, to be seen red left of blue; with ``before`` in front of the EXIF segment."""
    image = Image.new("RGB", (32, 32), "red")
    image.paste("blue", (0, 16, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 8
    payload = file_of(image, quality=95, exif=exif)
    return payload[:2] + b"".join(before) + payload[2:]


@pytest.mark.parametrize(
    "before",
    [
        segment(0xED, b"Photoshop 3.0\0" + file_of(Image.new("RGB", (4, 4)))),  # a preview, with a scan of its own
        segment(0xE2, b"ICC_PROFILE\0" + b"\xff\xda\xff\xe1" * 9),
        b"\xff\xff" + segment(0xFE, b"after fill bytes"),
    ],
)
def test_the_orientation_is_found_after_other_segments_by_both_decoders(before: bytes) -> None:
    payload = rotated(before)
    for pixels in (mmu_pixels(payload, 32), to_tensor(decode(payload))):
        assert pixels[:, 16, 4].tolist() == pytest.approx([254, 0, 0], abs=3)
        assert pixels[:, 16, 28].tolist() == pytest.approx([0, 0, 254], abs=3)


def test_words_in_other_segments_are_no_orientation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.images.decode", never)
    payload = file_of(photo(32, 32))
    comment = segment(0xFE, b'Exif\0\0 tiff:Orientation="6"')
    assert torch.equal(mmu_pixels(payload[:2] + comment + payload[2:], 16), mmu_pixels(payload, 16))


def transparent(kind: str, mode: str) -> bytes:
    """Black; the left half is transparent."""
    image = Image.new("LA" if mode == "LA" else "RGBA", (32, 32), (0, 255) if mode == "LA" else (0, 0, 0, 255))
    image.paste((40, 0) if mode == "LA" else (0, 90, 0, 0), (0, 0, 16, 32))
    if mode in ("RGBA", "LA"):
        return file_of(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    levels = np.zeros((32, 32), np.uint16 if mode == "I;16" else np.uint8)
    levels[:, :16] = 1
    grey = Image.fromarray(levels)
    if mode == "P":
        grey.putpalette([0, 0, 0, 0, 90, 0])
    if mode == "RGB":
        return file_of(Image.merge("RGB", [grey] * 3), kind, transparency=(1, 1, 1))
    return file_of(grey, kind, transparency=1)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, mode) for kind, modes in {
        "PNG": ("RGBA", "LA", "P", "L", "RGB", "I;16"), "WEBP": ("RGBA",), "GIF": ("P",), "TIFF": ("RGBA",)
    }.items() for mode in modes],
)  # fmt: skip
def test_transparency_shows_white(kind: str, mode: str) -> None:
    payload = transparent(kind, mode)
    picture = read_picture(payload)
    assert (picture.kind, picture.on_white, picture.image.mode) == (kind, True, "RGB")
    for pixels in (mmu_pixels(payload, 32), to_tensor(picture.image)):
        assert pixels[:, :, :15].unique().tolist() == [255]
        assert pixels[:, :, 17:].unique().tolist() == [0]


def test_half_transparency_is_half_white_and_opaque_pictures_are_not_counted() -> None:
    half = read_picture(file_of(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))
    assert half.on_white
    assert to_tensor(half.image).unique().tolist() == [127]
    opaque = read_picture(file_of(Image.new("RGBA", (4, 4), (9, 9, 9, 255)), "PNG"))
    assert not opaque.on_white
    assert to_tensor(opaque.image).unique().tolist() == [9]


@pytest.mark.parametrize(("kind", "type_"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_grey_of_16_bits_is_scaled(kind: str, type_: str) -> None:
    levels = (np.arange(256).reshape(16, 16) * 257).astype(np.uint16)
    image = Image.frombytes("I;16B" if type_ == ">u2" else "I;16", (16, 16), levels.astype(type_).tobytes())
    assert np.array_equal(to_tensor(decode(file_of(image, kind)))[0], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize(("type_", "what"), [(np.int32, "whole numbers of 32 bits"), (np.float32, "floating point")])
def test_numbers_without_a_fixed_white_are_refused(type_: type, what: str) -> None:
    ramp = Image.fromarray(np.linspace(0, 1000, 64).reshape(8, 8).astype(type_))
    for read in (decode, lambda payload: mmu_pixels(payload, 8)):
        with pytest.raises(ValueError, match=f"its pixels are {what}.*, which have no fixed white; save it with 8 or"):
            read(file_of(ramp, "TIFF"))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "no picture of a known kind"),
        (b"P6 1 1 255\n\0\0\0", r"no picture of a known kind \(JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer, .*; run `git lfs pull`"),
        (b"\0\5\x16\7" + bytes(60), "what macOS stores about another file, not a picture; delete it"),
    ],
)
def test_files_of_other_kinds_are_refused_and_no_program_is_started(
    monkeypatch: pytest.MonkeyPatch, payload: bytes, message: str
) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: started.append(words))
    for read in (decode, lambda given: mmu_pixels(given, 8)):
        with pytest.raises(ValueError, match=message):
            read(payload)
    assert started == []


def test_pillow_opens_files_in_one_place_only() -> None:
    root = Path(__file__).parents[3]
    folders = ("callbacks", "datamodules", "modules", "pipelines")
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    opening = {path.relative_to(root).as_posix() for path in files if re.search(r"Image\.open\b", path.read_text())}
    assert opening == {"datamodules/images.py"}
