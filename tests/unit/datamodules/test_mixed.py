"""The data module: exact make-up, tensors that say what the samples say, and a position that survives."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from datamodules.datasets import DataError
from datamodules.mixed import Counts, DataConfig, MixedDataModule
from datamodules.plan import SampleKey
from datamodules.shard_writer import write_shards
from modules.omnimamba.tokenizer import TextTokenizer

from .conftest import MODEL


def make(mmu: Path | str, t2i: Path | str, tokenizer: TextTokenizer, **changes: object) -> MixedDataModule:
    config = DataConfig(mmu=str(mmu), t2i=str(t2i), micro_batch=Counts(mmu=2, t2i=5), **changes)  # type: ignore[arg-type]
    return MixedDataModule(config, MODEL, tokenizer, tasks=("mmu", "t2i"), seed=7)


@pytest.fixture
def module(mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer) -> MixedDataModule:
    return make(mmu_manifest, t2i_manifest, tokenizer)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_holds_exactly_the_counts(
    mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer, workers: int
) -> None:
    module = make(mmu_manifest, t2i_manifest, tokenizer, num_workers=workers)
    seen: dict[str, list[str]] = {"mmu": [], "t2i": []}
    for batch in islice(module.train_dataloader(), 12):
        assert batch["mmu"]["images"].shape == (2, 3, 16, 16)
        assert batch["mmu"]["images"].dtype == torch.uint8
        assert batch["mmu"]["input_ids"].shape == (2, 44)
        assert batch["mmu"]["labels"].shape == (2, 40)
        assert batch["t2i"]["caption_ids"].shape == (5, 17)
        assert batch["t2i"]["image_ids"].shape == (5, 4)
        for task, keys in batch["keys"].items():
            seen[task] += keys
    assert sorted(seen["t2i"][:30]) == sorted(f"image-{i}" for i in range(30))
    assert sorted(seen["mmu"][:11]) == sorted(f"talk-{i}" for i in range(11))
    assert sorted(seen["t2i"][30:]) == sorted(f"image-{i}" for i in range(30))
    assert seen["t2i"][30:] != seen["t2i"][:30]


def test_tensors_are_those_of_the_samples(module: MixedDataModule, tokenizer: TextTokenizer) -> None:
    batch = next(iter(module.train_dataloader()))
    for key, codes, caption in zip(
        batch["keys"]["t2i"], batch["t2i"]["image_ids"], batch["t2i"]["caption_ids"], strict=True
    ):
        number = int(key.removeprefix("image-"))
        assert codes.tolist() == [number, number + 1, number + 2, number + 3]
        text = tokenizer.decode(caption.tolist())
        assert text[:-1] == f"c{number}"
        assert text[-1] in "01234"
    for key, image, ids in zip(batch["keys"]["mmu"], batch["mmu"]["images"], batch["mmu"]["input_ids"], strict=True):
        assert (image.float().mean() - 8 * int(key.removeprefix("talk-"))).abs() < 3  # JPEG
        assert tokenizer.decode(ids.tolist()) == "In: Q?\nOut: A"


def test_captions_change_from_epoch_to_epoch(module: MixedDataModule) -> None:
    samples = module.samples["t2i"]
    chosen = {tuple(samples.fetch([SampleKey("t2i", epoch, 3)])["caption_ids"][0].tolist()) for epoch in range(40)}
    assert len(chosen) == 5


def test_a_position_is_committed_not_fetched(module: MixedDataModule) -> None:
    batches = [batch["keys"] for batch in islice(module.train_dataloader(), 6)]
    assert module.positions == {"mmu": 0, "t2i": 0}
    module.commit()
    module.commit()
    assert module.positions == {"mmu": 4, "t2i": 10}
    assert module.epochs() == {"mmu": 4 / 11, "t2i": 10 / 30}
    assert [batch["keys"] for batch in islice(module.train_dataloader(), 4)] == batches[2:]


def test_a_state_loaded_after_the_loader_was_made_counts(
    module: MixedDataModule, mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer
) -> None:
    batches = [batch["keys"] for batch in islice(module.train_dataloader(), 4)]
    module.commit()
    state = json.loads(json.dumps(module.state_dict()))  # plain data
    other = make(mmu_manifest, t2i_manifest, tokenizer)
    loader = other.train_dataloader()
    other.load_state_dict(state)
    assert [batch["keys"] for batch in islice(loader, 3)] == batches[1:]


def test_changed_data_are_refused(
    module: MixedDataModule, mmu_manifest: Path, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    sample = ("image-0", {"json": b'{"captions": ["x"]}', "vq": bytes(8)})
    changed = write_shards(tmp_path / "new", "t2i", [sample], per_shard=8, meta={})
    with pytest.raises(
        ValueError, match=r"the data changed since the checkpoint: fingerprints then .* now .*accept_changed"
    ):
        make(mmu_manifest, changed, tokenizer).load_state_dict(module.state_dict())
    make(mmu_manifest, changed, tokenizer, accept_changed=True).load_state_dict(module.state_dict())


def test_another_seed_is_refused(module: MixedDataModule) -> None:
    with pytest.raises(ValueError, match="data order has seed 8, this run has seed=7"):
        module.load_state_dict({**module.state_dict(), "seed": 8})


@pytest.mark.parametrize(("world_size", "expected"), [(1, 4), (2, 2), (4, 1)])
def test_accumulation_fills_the_global_batch(world_size: int, expected: int) -> None:
    config = DataConfig(micro_batch=Counts(mmu=3, t2i=48), global_batch=Counts(mmu=12, t2i=192))
    assert config.accumulation(("mmu", "t2i"), world_size) == expected


def test_a_global_batch_that_does_not_divide_is_refused() -> None:
    config = DataConfig(micro_batch=Counts(mmu=3, t2i=48), global_batch=Counts(mmu=12, t2i=192))
    with pytest.raises(
        ValueError, match=r"data\.global_batch\.mmu=12 is not a multiple of data\.micro_batch\.mmu=3 on 3 ranks"
    ):
        config.accumulation(("mmu", "t2i"), 3)
    config = DataConfig(micro_batch=Counts(mmu=3, t2i=48), global_batch=Counts(mmu=12, t2i=96))
    with pytest.raises(ValueError, match=r"asks for \{'mmu': 4, 't2i': 2\} micro-steps"):
        config.accumulation(("mmu", "t2i"), 1)


def mmu_sample(tmp_path: Path, image: bytes, answer: str = "A") -> Path:
    turns = [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": answer}]
    fields = {"json": json.dumps({"conversations": turns}).encode(), "jpg": image}
    return write_shards(tmp_path / "one", "mmu", [("talk-0", fields)], per_shard=1, meta={})


def test_an_image_that_does_not_decode_is_named(tmp_path: Path, t2i_manifest: Path, tokenizer: TextTokenizer) -> None:
    module = make(mmu_sample(tmp_path, b"no image"), t2i_manifest, tokenizer)
    with pytest.raises(DataError, match=r"talk-0: its image does not decode .* prepare the data again without it"):
        next(iter(module.train_dataloader()))


def test_a_conversation_that_does_not_fit_is_named(
    tmp_path: Path, t2i_manifest: Path, tokenizer: TextTokenizer
) -> None:
    from .conftest import jpeg

    module = make(mmu_sample(tmp_path, jpeg(0), "x" * 50), t2i_manifest, tokenizer)
    with pytest.raises(DataError, match=r"talk-0: the first turn has .* raise model\.mmu_text_length"):
        next(iter(module.train_dataloader()))


@pytest.mark.parametrize("codes", [bytes(6), b"\xff\x00" * 4])
def test_codes_of_another_vq_are_refused(
    tmp_path: Path, mmu_manifest: Path, tokenizer: TextTokenizer, codes: bytes
) -> None:
    manifest = write_shards(
        tmp_path / "one", "t2i", [("image-0", {"json": b'{"captions": ["x"]}', "vq": codes})], per_shard=1, meta={}
    )
    with pytest.raises(
        DataError, match=r"image-0: . VQ codes up to .* model\.image_tokens=4 below model\.image_vocab=50"
    ):
        next(iter(make(mmu_manifest, manifest, tokenizer).train_dataloader()))


def test_a_missing_manifest_is_named(mmu_manifest: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/manifest\.json"):
        make(mmu_manifest, "nowhere/manifest.json", tokenizer)


def test_shards_of_the_other_task_are_refused(mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(ValueError, match=r"holds json, vq but no jpg: these are not mmu shards"):
        make(t2i_manifest, t2i_manifest, tokenizer)
    with pytest.raises(ValueError, match=r"holds jpg, json but no vq: these are not t2i shards"):
        make(mmu_manifest, mmu_manifest, tokenizer)
