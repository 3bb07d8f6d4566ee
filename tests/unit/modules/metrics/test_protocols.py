import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from modules.metrics.protocols import PROTOCOLS


def noise(size: int = 256, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def grey_levels(name: str, images: Tensor) -> Tensor:
    """What the network sees, back in 0 to 255."""
    seen = PROTOCOLS[name].network_input(images)
    assert seen.dtype == torch.float32
    assert seen.shape == (len(images), 3, 299, 299)
    return seen * 128 + 128 if name == "cleanfid" else (seen + 1) * 127.5


def test_real_pictures_are_cropped_to() -> None:
    found = {name: (protocol.size, protocol.scaling.name) for name, protocol in PROTOCOLS.items()}
    assert found == {"uvit": (256, "LANCZOS"), "t2ib": (299, "BICUBIC"), "cleanfid": (256, "LANCZOS")}


@pytest.mark.parametrize(("name", "white"), [("uvit", 1), ("t2ib", 1), ("cleanfid", 127 / 128)])
def test_range(name: str, white: float) -> None:
    prepare = PROTOCOLS[name].network_input
    for value, expected in ((0, -1), (255, white)):
        seen = prepare(torch.full((1, 3, 256, 256), value, dtype=torch.uint8))
        torch.testing.assert_close(seen, torch.full((1, 3, 299, 299), float(expected)), atol=1e-6, rtol=0)


def test_uvit_is_bilinear_about_pixel_centres_without_antialiasing() -> None:
    # enlarging, torchmetrics' antialiased scaling is the same to 5e-4 of a grey level
    images = noise()
    smooth = F.interpolate(images.float(), (299, 299), mode="bilinear", align_corners=False, antialias=True)
    assert (grey_levels("uvit", images) - smooth).abs().max() < 1e-3
    # made smaller, it is not: 598 to 299 pixels takes the mean of 2 x 2
    large = noise(598, 1)
    torch.testing.assert_close(grey_levels("uvit", large), F.avg_pool2d(large.float(), 2), atol=1e-3, rtol=0)


def test_t2ib_is_pillows_bicubic_in_bytes() -> None:
    images = noise()
    seen = grey_levels("t2ib", images)
    for image, levels in zip(images, seen, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((299, 299), Image.Resampling.BICUBIC)
        expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        assert torch.equal(levels.round().to(torch.uint8), expected)
        assert (levels - levels.round()).abs().max() < 1e-4


def test_t2ib_leaves_real_pictures_as_they_were_cropped() -> None:
    images = noise(299, 1)
    assert torch.equal(grey_levels("t2ib", images).round().to(torch.uint8), images)


def test_cleanfid_is_pillows_bicubic_in_float() -> None:
    images = noise()
    seen = grey_levels("cleanfid", images)
    for image, levels in zip(images.flatten(0, 1), seen.flatten(0, 1), strict=True):
        picture = Image.fromarray(image.numpy().astype(np.float32))
        expected = np.asarray(picture.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
        np.testing.assert_allclose(levels.numpy(), expected, atol=1e-4)
    assert (seen - seen.round()).abs().max() > 0.4  # not rounded
    assert (seen.min(), seen.max()) == (0, 255)  # bicubic overshoots noise; clipped


def test_cleanfid_antialiases_where_it_makes_smaller() -> None:
    stripes = torch.zeros(1, 3, 897, 897, dtype=torch.uint8)
    stripes[..., ::3] = 255
    # three columns become one: a third of white everywhere, where plain bilinear would see black only
    middle = (slice(None), slice(None), slice(10, -10), slice(10, -10))
    torch.testing.assert_close(
        grey_levels("cleanfid", stripes)[middle], torch.full((1, 3, 279, 279), 85.0), atol=1, rtol=0
    )
    assert grey_levels("uvit", stripes)[middle].max() < 1


def test_protocols_differ_by_the_known_amount_on_noise() -> None:
    images = noise(n=4)
    difference = (grey_levels("uvit", images) - grey_levels("cleanfid", images)).abs().mean()
    assert float(difference) == pytest.approx(10.7, abs=0.1)


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_a_picture_does_not_depend_on_its_batch(name: str) -> None:
    images, prepare = noise(n=3), PROTOCOLS[name].network_input
    assert torch.equal(prepare(images)[1:2], prepare(images[1:2]))
