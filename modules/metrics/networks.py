"""Feature networks from local files whose hash is known. Nothing is ever downloaded.

``inception`` is the network of the TensorFlow release of 2015-12-05 that defines FID. It exists as weights (for
torch-fidelity's module) and as TorchScript; both are identified here by their hash. Any other TorchScript file can be
used under another name; its distances are not FID.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from modules.files import sha256
from modules.metrics.protocols import INPUT_SIZE
from modules.reading import require_file

INCEPTION = "inception"
INCEPTION_WIDTH = 2048
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""``pt_inception-2015-12-05-6726825d.pth`` of pytorch-fid; the same file as torch-fidelity's
``weights-inception-...``."""
TORCHSCRIPT_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""``inception-2015-12-05.pt`` of StyleGAN2-ADA and clean-fid."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A feature network: float32 pictures (B, 3, 299, 299), prepared by a protocol, to features (B, width)."""

    name: str
    sha256: str
    width: int
    module: nn.Module

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Features of prepared pictures."""
        features: Tensor = self.module(pictures)
        return features.flatten(1)


def check_weights(name: str, path: Path, wanted: str = "") -> str:
    """Return the hash of a network's file, after checking that it is ``wanted``, or a known one of Inception.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the hash differs, or the file is named inception but is not Inception.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} of the network {name} do not exist; they are never downloaded")
    require_file(path, f"the file of the network {name}")
    found = sha256(path)
    if wanted and found != wanted:
        raise ValueError(f"{path} has sha256 {found}, expected {wanted}; fetch it again or correct weights_sha256")
    if name == INCEPTION and found not in (WEIGHTS_SHA256, TORCHSCRIPT_SHA256):
        raise ValueError(
            f"{path} (sha256 {found}) is not the Inception of 2015-12-05; its files have {WEIGHTS_SHA256} (weights) "
            f"and {TORCHSCRIPT_SHA256} (TorchScript). Give another network another name"
        )
    if found == WEIGHTS_SHA256:
        _torch_fidelity()
    return found


def load_network(name: str, path: Path, device: torch.device, wanted: str = "") -> Network:
    """The network in ``path``, frozen, in float32.

    If a TorchScript has a submodule ``layers``, only that is used, like in clean-fid: the code before it would scale
    pictures again.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the file holds weights for torch-fidelity, which is not installed.
        ValueError: it is the wrong file, or does not give one row of features per picture.
    """
    found = check_weights(name, path, wanted)
    module = _inception(path) if found == WEIGHTS_SHA256 else _torchscript(path)
    module = module.eval().to(device)
    for parameter in module.parameters():  # TorchScript has no module.requires_grad_
        parameter.requires_grad_(False)
    with torch.no_grad():
        features = module(torch.zeros(2, 3, INPUT_SIZE, INPUT_SIZE, device=device))
    width = features[0].numel() if isinstance(features, Tensor) and len(features) == 2 else 0
    if not width or (name == INCEPTION and width != INCEPTION_WIDTH):
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        expected = f"(2, {INCEPTION_WIDTH})" if name == INCEPTION else "(2, width)"
        raise ValueError(f"the network {path} makes {shape} of two pictures, expected {expected}")
    return Network(name=name, sha256=found, width=width, module=module)


def _torchscript(path: Path) -> nn.Module:
    try:
        module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ValueError(f"{path} is not TorchScript ({str(error).splitlines()[0]}); export it as such") from error
    layers = getattr(module, "layers", module)
    assert isinstance(layers, nn.Module)
    return layers


def _inception(path: Path) -> nn.Module:
    """torch-fidelity's modules in sequence: its own forward would scale the pictures again."""
    extractor = _torch_fidelity()(INCEPTION, [str(INCEPTION_WIDTH)], feature_extractor_weights_path=str(path))
    return nn.Sequential(*(part for name, part in extractor.named_children() if name != "fc"))


def _torch_fidelity() -> type[nn.Module]:
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise ImportError(
            f"the Inception weights need torch-fidelity ({error}); install it with torchvision (pip install "
            "torch-fidelity), or name the TorchScript file inception-2015-12-05.pt"
        ) from error
    extractor: type[nn.Module] = module.FeatureExtractorInceptionV3
    return extractor
