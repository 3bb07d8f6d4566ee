from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images import centre_crop, read_image, squeeze, to_image, to_tensor


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


def test_squeeze_ignores_the_aspect() -> None:
    image = Image.new("RGB", (40, 10), "red")
    image.paste("blue", (20, 0, 40, 10))
    squeezed = np.asarray(squeeze(image, 8))
    assert squeezed.shape == (8, 8, 3)
    assert squeezed[4, 1].tolist() == [255, 0, 0]
    assert squeezed[4, 6].tolist() == [0, 0, 255]


def test_tensors_and_back() -> None:
    pixels = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_tensor(to_image(pixels)), pixels)


def test_grey_pictures_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (3, 3), 7).save(tmp_path / "grey.png")
    assert to_tensor(read_image(tmp_path / "grey.png")).unique().tolist() == [7]


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"image .*nowhere.jpg does not exist"):
        read_image(tmp_path / "nowhere.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"image .*text.jpg does not decode"):
        read_image(tmp_path / "text.jpg")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"image .*half.png does not decode"):
        read_image(tmp_path / "half.png")
