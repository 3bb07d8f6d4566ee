import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from modules.files import sha256
from modules.metrics import networks
from modules.metrics.networks import check_weights, load_network

CPU = torch.device("cpu")


class Layers(nn.Module):
    """As in NVIDIA's file: the network proper is ``layers``, before it pictures are scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures * 1000)  # type: ignore[no-any-return]


def script(module: nn.Module, path: Path) -> str:
    torch.jit.script(module).save(str(path))  # type: ignore[no-untyped-call]
    return sha256(path)


def test_torchscript_is_entered_at_its_layers(tmp_path: Path) -> None:
    digest = script(Layers(), tmp_path / "net.pt")
    network = load_network("ours", tmp_path / "net.pt", CPU, digest)
    assert (network.name, network.sha256, network.width) == ("ours", digest, 12)
    pictures = torch.rand(3, 3, 299, 299)
    torch.testing.assert_close(network(pictures), nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1))


def test_features_may_be_maps_of_one_pixel(tmp_path: Path) -> None:
    digest = script(nn.Sequential(nn.AdaptiveAvgPool2d(1)), tmp_path / "net.pt")
    network = load_network("ours", tmp_path / "net.pt", CPU, digest)
    assert network(torch.ones(2, 3, 299, 299)).tolist() == [[1, 1, 1]] * 2


def test_the_known_torchscript_is_inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = script(Layers(), tmp_path / "net.pt")
    monkeypatch.setattr(networks, "TORCHSCRIPT_SHA256", digest)
    with pytest.raises(ValueError, match=r"makes \(2, 12\) of two pictures, expected \(2, 2048\)"):
        load_network("inception", tmp_path / "net.pt", CPU)
    monkeypatch.setattr(networks, "INCEPTION_WIDTH", 12)
    assert load_network("inception", tmp_path / "net.pt", CPU).width == 12


def test_the_hash_decides(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"the file of the network ours .*net.pt is a git-lfs pointer.*git lfs pull"):
        check_weights("ours", path)
    digest = script(Layers(), path)
    assert check_weights("ours", path, digest) == digest
    with pytest.raises(ValueError, match=rf"net.pt has sha256 {digest}, expected 00ff; fetch it again"):
        check_weights("ours", path, "00ff")
    with pytest.raises(ValueError, match=rf"\(sha256 {digest}\) is not the Inception of 2015-12-05.*another name"):
        check_weights("inception", path)
    with pytest.raises(
        FileNotFoundError, match=r"nowhere.pt of the network ours do not exist; they are never downloaded"
    ):
        check_weights("ours", tmp_path / "nowhere.pt")


def test_refuses_what_is_no_torchscript_or_no_feature_network(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"weights.pth is not TorchScript .*; export it as such"):
        load_network("ours", path, CPU)

    class Pair(nn.Module):
        def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
            return pictures, pictures

    script(Pair(), tmp_path / "pair.pt")
    with pytest.raises(ValueError, match=r"pair.pt makes tuple of two pictures, expected \(2, width\)"):
        load_network("ours", tmp_path / "pair.pt", CPU)


def test_weights_need_torch_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, path)
    monkeypatch.setattr(networks, "WEIGHTS_SHA256", sha256(path))
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"need torch-fidelity .*pip install torch-fidelity.*inception-2015-12-05.pt"):
        check_weights("inception", path)


def test_torch_fidelitys_modules_are_run_without_its_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"Conv2d_1a_3x3.weight": torch.full((2, 3, 1, 1), 2.0)}, path)

    class FeatureExtractorInceptionV3(nn.Module):
        """torch-fidelity's interface: modules in the order of the network, the classifier last."""

        def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
            super().__init__()
            assert features == ["2"]
            self.Conv2d_1a_3x3 = nn.Conv2d(3, 2, 1, bias=False)
            self.AvgPool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(2, 1)
            self.load_state_dict(torch.load(feature_extractor_weights_path), strict=False)

    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FeatureExtractorInceptionV3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(networks, "WEIGHTS_SHA256", sha256(path))
    monkeypatch.setattr(networks, "INCEPTION_WIDTH", 2)
    network = load_network("inception", path, CPU)
    assert network(torch.ones(1, 3, 299, 299)).tolist() == [[6, 6]]
    assert not any(parameter.requires_grad for parameter in network.module.parameters())
