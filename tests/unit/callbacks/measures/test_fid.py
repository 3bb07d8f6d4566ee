"""FID through the whole measure, with a tiny TorchScript in the place of Inception."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from callbacks.measures.fid import Fid, FidConfig
from callbacks.measures.measure import EvaluationContext, Result
from callbacks.measures.running import run_measure
from datamodules.images import centre_crop, read_image, to_tensor
from modules.files import sha256
from modules.metrics import networks
from modules.metrics.fid import frechet
from modules.metrics.kid import kid
from modules.metrics.manifold import precision_recall
from modules.metrics.protocols import PROTOCOLS

Make = Callable[..., EvaluationContext]
WIDTH = 12


class Tiny(nn.Module):
    """Features of a picture: its colours in four quarters, bent."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Tanh())

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "tiny.pt"
    torch.jit.script(Tiny()).save(str(path))  # type: ignore[no-untyped-call]
    return path


@pytest.fixture
def inception(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(networks, "TORCHSCRIPT_SHA256", sha256(weights))
    monkeypatch.setattr(networks, "INCEPTION_WIDTH", WIDTH)
    return weights


def fid(benchmark: Path, weights: Path | str, **changes: Any) -> Fid:
    values = {
        "captions": str(benchmark / "captions.json"),
        "images": str(benchmark / "images"),
        "n": 5,
        "data": "scenes",
        "extractor": "inception",
        "weights": str(weights),
    }
    return Fid(FidConfig(**(values | changes)))


def run(measure: Fid, context: EvaluationContext) -> Result:
    measure.check(context)
    result = run_measure(measure, context)
    assert result is not None
    return result


@pytest.mark.parametrize("name", ["uvit", "t2ib", "cleanfid"])
def test_all_figures_are_those_of_features_computed_directly(
    name: str, benchmark: Path, inception: Path, make_context: Make
) -> None:
    context, measure, protocol = make_context(batch_size=2), fid(benchmark, inception, protocol=name), PROTOCOLS[name]
    result = run(measure, context)
    assert context.vq is not None

    def features(pictures: Tensor) -> Any:
        return Tiny()(protocol.network_input(pictures)).flatten(1).numpy()

    def moments(given: Any) -> Any:
        return given.mean(axis=0, dtype=np.float64), np.cov(given.astype(np.float64).T)

    paths = [benchmark / f"images/{i}.jpg" for i in range(6)]
    real = torch.stack([to_tensor(centre_crop(read_image(p), protocol.size, protocol.scaling)) for p in paths])
    drawn = context.vq.decode(torch.tensor([record["codes"] for record in measure.records(context)]))
    x, y = features(drawn), features(real)
    assert measure.name == ("coco_style" if name == "uvit" else f"coco_{name}_style")
    assert set(result.metrics) == {"fid_5", "rfid_5", "kid_5", "kid_5/std", "precision_5", "recall_5"}
    assert result.metrics["fid_5"] == pytest.approx(frechet(*moments(x), *moments(y)), abs=1e-6)
    assert (result.metrics["kid_5"], result.metrics["kid_5/std"]) == pytest.approx(kid(x, y), abs=1e-6)
    assert (result.metrics["precision_5"], result.metrics["recall_5"]) == precision_recall(x, y)
    assert set(result.baselines) == {"fid_5"}
    expected = {
        "fid_protocol": name,
        "weights_sha256": sha256(inception),
        "n": 5,
        "n_reference": 6,
        "kid_subsets": [100, 5],
        "preprocessing": f"centre crop, {protocol.scaling.name} to {protocol.size}",
    }
    assert {key: result.protocol[key] for key in expected} == expected


def test_pictures_as_good_as_the_tokenizer_reach_the_ceiling(
    benchmark: Path, inception: Path, make_context: Make
) -> None:
    context, measure = make_context(), fid(benchmark, inception)
    measure.generate(context)
    assert context.vq is not None
    oracle = []
    for record in measure.records(context):
        image = to_tensor(centre_crop(read_image(benchmark / "images" / record["image"]), 16))
        oracle.append(record | {"codes": context.vq.encode(image[None])[0].tolist()})
    metrics = measure.assess(context, oracle).metrics
    assert metrics["fid_5"] == pytest.approx(metrics["rfid_5"], abs=1e-9)
    assert metrics["fid_5"] > 0


def work_of_a_rank(
    rank: int, store: str, config: FidConfig, context: EvaluationContext, digest: str, results: Any
) -> None:
    """One of two processes; only spawned ones know nothing of the test's patches."""
    torch.set_num_threads(1)
    networks.TORCHSCRIPT_SHA256, networks.INCEPTION_WIDTH = digest, WIDTH
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    measure = Fid(config)
    for step in (20, 40):  # at the second the reference is known to rank 0 alone
        mine = replace(context, rank=rank, world_size=2, step=step)
        measure.check(mine)
        result = run_measure(measure, mine)
        assert (result is None) == (rank == 1)
        if result is not None:
            results[step] = result.metrics
    distributed.destroy_process_group()


@pytest.mark.parametrize("extractor", ["inception", "pool"])
def test_two_processes_with_unequal_shares_are_one(
    extractor: str, benchmark: Path, inception: Path, make_context: Make, tmp_path: Path
) -> None:
    measure = fid(benchmark, "" if extractor == "pool" else inception, extractor=extractor)
    alone = run(measure, make_context(folder=tmp_path / "alone")).metrics
    context = make_context(folder=tmp_path / "two")
    with multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        arguments = (str(tmp_path / "store"), measure.config, context, sha256(inception), results)
        multiprocessing.spawn(work_of_a_rank, arguments, nprocs=2)  # type: ignore[no-untyped-call]
        found = dict(results)
    # sums in another order, 1e-16; under the root of a covariance of few pictures 1e-8
    assert found[20] == pytest.approx(alone, abs=1e-6)
    assert found[40] == pytest.approx(alone, abs=1e-6)
    assert not list((tmp_path / "two").rglob("features-*"))


def test_reference_from_a_folder_is_kept_and_read_again(
    benchmark: Path, inception: Path, make_context: Make, tmp_path: Path
) -> None:
    folder, cache = tmp_path / "real", tmp_path / "cache"
    shutil.copytree(benchmark / "images", folder)
    first = run(fid(benchmark, inception, reference=str(folder), cache=str(cache)), make_context())
    assert first.metrics == run(fid(benchmark, inception), make_context(folder=tmp_path / "b")).metrics
    [kept] = cache.iterdir()
    # the pictures' contents are not looked at again
    for path in folder.iterdir():
        path.write_bytes(b"x" * path.stat().st_size)
    again = run(fid(benchmark, inception, reference=str(folder), cache=str(cache)), make_context(folder=tmp_path / "c"))
    assert again.metrics == first.metrics
    # and so it can be named itself
    named = run(fid(benchmark, inception, reference=str(kept)), make_context(folder=tmp_path / "d"))
    assert named.metrics == first.metrics
    assert named.protocol["reference"] == {kept.name: sha256(kept)}
    with pytest.raises(ValueError, match="was made with fid_protocol=uvit, expected t2ib; they cannot be compared"):
        fid(benchmark, inception, reference=str(kept), protocol="t2ib").check(make_context())
    # other pictures are another reference
    (folder / "0.jpg").unlink()
    with pytest.raises(ValueError, match=r"1.jpg does not decode"):
        run(fid(benchmark, inception, reference=str(folder), cache=str(cache)), make_context(folder=tmp_path / "e"))


def test_published_statistics_give_a_distance_only(
    benchmark: Path, inception: Path, make_context: Make, tmp_path: Path
) -> None:
    path = tmp_path / "published.npz"
    np.savez(path, mu=np.zeros(WIDTH), sigma=np.eye(WIDTH))
    result = run(fid(benchmark, inception, reference=str(path)), make_context())
    assert set(result.metrics) == {"fid_5", "rfid_5"}
    assert result.protocol["n_reference"] is None
    np.savez(path, mu=np.zeros(80), sigma=np.eye(80))
    with pytest.raises(ValueError, match=r"mu of shape \(80,\).* the network's features need \(12,\)"):
        fid(benchmark, inception, reference=str(path)).check(make_context())
    np.save(tmp_path / "a.npy", np.array({"mu": np.zeros(WIDTH), "sigma": np.eye(WIDTH)}), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy is an npy file: .* Expected an npz with mu and sigma"):
        fid(benchmark, inception, reference=str(tmp_path / "a.npy")).check(make_context())
    (tmp_path / "published.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"folder of reference pictures .*published\.pt is not a folder"):
        fid(benchmark, inception, reference=str(tmp_path / "published.pt")).check(make_context())


def test_linked_reference_pictures_count(
    benchmark: Path, inception: Path, make_context: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of six pictures lie behind a link that leads back as well."""
    (tmp_path / "real").mkdir()
    (tmp_path / "disk").mkdir()
    for i in range(6):
        shutil.copy(benchmark / f"images/{i}.jpg", tmp_path / ("disk" if i > 3 else "real"))
    (tmp_path / "real" / "part").symlink_to("../disk")
    (tmp_path / "disk" / "back").symlink_to("../real")
    (tmp_path / "real" / "._0.jpg").write_bytes(b"\x00\x05\x16\x07")
    linked = run(fid(benchmark, inception, reference=str(tmp_path / "real")), make_context(folder=tmp_path / "a"))
    flat = run(fid(benchmark, inception), make_context(folder=tmp_path / "b"))
    assert linked.protocol["n_reference"] == 6
    assert linked.metrics == pytest.approx(flat.metrics, abs=1e-6)
    assert "1 files that macOS added (._*, __MACOSX) are left out" in caplog.text


def test_a_table_of_prompts(benchmark: Path, inception: Path, make_context: Make, tmp_path: Path) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text("image_id,text\n7,a red thing\n8,a blue thing\n9,a green thing\n")
    given = {"captions": str(table), "images": "", "n": 3, "reference": str(benchmark / "images")}
    context, measure = make_context(), fid(benchmark, inception, **given)
    result = run(measure, context)
    assert [record["prompt"] for record in measure.records(context)] == ["a red thing", "a blue thing", "a green thing"]
    assert set(result.metrics) == {"fid_3", "kid_3", "kid_3/std"}  # no picture to reconstruct, too few for neighbours


def test_the_choice_of_prompts_is_written_and_can_be_used_again(
    benchmark: Path, inception: Path, make_context: Make, tmp_path: Path
) -> None:
    first = run(fid(benchmark, inception, seed=3), make_context())
    path = make_context().records / "coco_style" / "prompts.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert set(lines[0]) == {"index", "image_id", "caption_id", "caption", "image"}
    again = fid(benchmark, inception, seed=3, captions=str(path), reference=str(benchmark / "images"))
    assert run(again, make_context(folder=tmp_path / "again")).metrics == first.metrics


def test_names() -> None:
    def names(n: int, **changes: Any) -> tuple[str, str]:
        config = FidConfig(captions="c.json", images="i", n=n, **changes)
        return config.measure, config.metric("fid", n)

    assert names(30_000, extractor="inception") == ("coco", "fid30k")
    assert names(5000, extractor="inception", protocol="t2ib") == ("coco_t2ib", "fid5k")
    assert names(256, extractor="inception", data="scenes") == ("coco_style", "fid_256")
    assert names(5000, extractor="inception", n_reference=2000) == ("coco", "fid5k_ref2k")
    assert names(5000, extractor="dino", protocol="cleanfid") == ("fd_dino_cleanfid", "fd5k")
    assert names(256) == ("fd_pool", "fd_256")
    config = FidConfig(captions="c.json", images="i", n=9, extractor="dino")
    assert [config.metric(kind, 9) for kind in ("rfid", "kid", "recall")] == ["rfd_9", "kd_9", "recall_9"]


def test_another_network_has_another_name(benchmark: Path, weights: Path, make_context: Make) -> None:
    measure = fid(benchmark, weights, extractor="tiny", weights_sha256=sha256(weights))
    assert measure.name == "fd_tiny_style"
    assert "fd_5" in run(measure, make_context()).metrics
    with pytest.raises(ValueError, match="is not the Inception of 2015-12-05"):
        fid(benchmark, weights).check(make_context())


def test_official_files_must_be_complete(benchmark: Path, inception: Path, make_context: Make, tmp_path: Path) -> None:
    official = {"data": "official"}
    with pytest.raises(ValueError, match=r"captions.json lists 6 images, expected 40504. If this is not the official"):
        fid(benchmark, inception, **official).check(make_context())
    table = tmp_path / "prompts.csv"
    table.write_text("image_id,text\n7,a red thing\n8,a blue thing\n")
    given = official | {"captions": str(table), "n": 2, "images": "", "reference": str(benchmark / "images")}
    with pytest.raises(ValueError, match=r"prompts.csv holds 2 prompts, expected 30000. If this is not the official"):
        fid(benchmark, inception, **given).check(make_context())
    rows = "".join(f"{i},a red thing\n" for i in range(30_000))
    table.write_text("image_id,text\n" + rows)
    with pytest.raises(ValueError, match=r"images holds 6 pictures, expected 40504. If this is not the official"):
        fid(benchmark, inception, **given).check(make_context())


def test_problems() -> None:
    def problems(**changes: Any) -> list[str]:
        return FidConfig(**({"captions": "c.json", "images": "i", "n": 5} | changes)).problems()

    assert problems() == problems(extractor="inception", weights="w") == []
    assert problems(captions="c.csv", images="", reference="r") == []
    assert problems(images="", n_reference=3, reference="r") == [
        "n_reference=3 chooses from the captions file; leave out n_reference or reference",
        "images is empty; name the folder of the pictures that the captions file lists",
    ]
    assert problems(captions="c.csv") == ["captions=c.csv lists no pictures to compare with; set reference"]
    assert problems(weights="w", protocol="t2ib") == [
        "extractor=pool takes no weights; leave it out, or choose extractor=inception",
        "extractor=pool takes no protocol; leave it out, or choose extractor=inception",
    ]
    assert problems(extractor="My net") == [
        "extractor='My net' must be a word of lower-case letters, digits and _: it names results",
        "extractor=My net needs weights; name the network's file",
        "extractor=My net needs weights_sha256, so that its distances can be told apart",
    ]
