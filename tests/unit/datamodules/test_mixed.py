"""The data module: exact make-up, tensors that say what the samples say, and a position that survives."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from callbacks.steps import CommitPosition
from datamodules.data_config import Counts, DataConfig
from datamodules.datasets import DataError
from datamodules.encode import IGNORE, PromptTemplate, encode_caption
from datamodules.mixed import MixedDataModule
from datamodules.plan import Places
from datamodules.shards.reader import DamagedShardError
from modules.omnimamba.tokenizer import TextTokenizer
from tests.unit.datamodules.writing import write_shards

from .conftest import MODEL, jpeg


def make(mmu: Path | str, t2i: Path | str, tokenizer: TextTokenizer, **changes: object) -> MixedDataModule:
    config = DataConfig(mmu=str(mmu), t2i=str(t2i), micro_batch=Counts(mmu=2, t2i=5), **changes)  # type: ignore[arg-type]
    return MixedDataModule(config, MODEL, tokenizer, tasks=("mmu", "t2i"), seed=7)


@pytest.fixture
def module(mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer) -> MixedDataModule:
    return make(mmu_manifest, t2i_manifest, tokenizer)


def keys(module: MixedDataModule, batch: dict[str, Any]) -> dict[str, list[str]]:
    return {task: module.keys(task, places) for task, places in batch["places"].items()}


def first_keys(module: MixedDataModule, count: int) -> list[dict[str, list[str]]]:
    return [keys(module, batch) for batch in islice(module.train_dataloader(), count)]


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
        for task, mine in keys(module, batch).items():
            seen[task] += mine
    assert sorted(seen["t2i"][:30]) == sorted(f"image-{i}" for i in range(30))
    assert sorted(seen["mmu"][:11]) == sorted(f"talk-{i}" for i in range(11))
    assert sorted(seen["t2i"][30:]) == sorted(f"image-{i}" for i in range(30))
    assert seen["t2i"][30:] != seen["t2i"][:30]


def test_tensors_are_those_of_the_samples(module: MixedDataModule, tokenizer: TextTokenizer) -> None:
    batch = next(iter(module.train_dataloader()))
    names = keys(module, batch)
    for key, codes, caption in zip(names["t2i"], batch["t2i"]["image_ids"], batch["t2i"]["caption_ids"], strict=True):
        number = int(key.removeprefix("image-"))
        assert codes.tolist() == [number, number + 1, number + 2, number + 3]
        text = tokenizer.decode(caption.tolist())
        assert text[:-1] == f"c{number}"
        assert text[-1] in "01234"
    for key, image, ids in zip(names["mmu"], batch["mmu"]["images"], batch["mmu"]["input_ids"], strict=True):
        assert (image.float().mean() - 8 * int(key.removeprefix("talk-"))).abs() < 3  # JPEG
        assert tokenizer.decode(ids.tolist()) == "In: Q?\nOut: A"


def test_captions_change_from_epoch_to_epoch(module: MixedDataModule) -> None:
    assert len(set(captions_of(module, sample=3, epochs=40))) == 5


def captions_of(module: MixedDataModule, sample: int, epochs: int) -> list[tuple[int, ...]]:
    places = Places(np.arange(epochs), np.full(epochs, sample))
    return [tuple(row) for row in module.samples["t2i"].fetch(places)["caption_ids"].tolist()]


def test_every_caption_is_as_likely(module: MixedDataModule) -> None:
    chosen = Counter(captions_of(module, sample=7, epochs=5000))
    # 5 times 1000 expected, standard deviation 28
    assert all(abs(count - 1000) < 140 for count in chosen.values())


def test_rotated_captions_come_once_in_as_many_epochs(
    mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer
) -> None:
    module = make(mmu_manifest, t2i_manifest, tokenizer, caption="rotate")
    for sample in range(10):
        chosen = captions_of(module, sample, epochs=10)
        assert len(set(chosen[:5])) == 5
        assert chosen[5:] == chosen[:5]
    assert len({captions_of(module, sample, 1)[0][-4] for sample in range(10)}) > 1  # not all start with the same one


def test_captions_are_dropped_at_the_rate_asked_for_and_by_place(
    mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer
) -> None:
    module = make(mmu_manifest, t2i_manifest, tokenizer, caption_dropout=0.2)
    chosen = captions_of(module, sample=3, epochs=5000)
    nothing = tuple(encode_caption(tokenizer, "", MODEL.caption_length))
    # 1000 expected, standard deviation 28
    assert abs(chosen.count(nothing) - 1000) < 140
    assert len(set(chosen)) == 6
    assert captions_of(module, sample=3, epochs=5000) == chosen


@pytest.mark.parametrize(("device", "pinned"), [("cuda", True), ("cpu", False), (None, True)])
def test_batches_are_pinned_where_they_go_to_a_gpu(
    module: MixedDataModule, device: str | None, pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that has one: a run on its CPU takes none of its memory."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if device is not None:
        strategy = SimpleNamespace(root_device=torch.device(device))
        module.trainer = cast(pl.Trainer, SimpleNamespace(strategy=strategy))
    assert module.train_dataloader().pin_memory == pinned


def test_a_position_is_committed_not_fetched(module: MixedDataModule) -> None:
    batches = first_keys(module, 6)
    assert module.positions == {"mmu": 0, "t2i": 0}
    module.commit()
    module.commit()
    assert module.positions == {"mmu": 4, "t2i": 10}
    assert module.epochs() == {"mmu": 4 / 11, "t2i": 10 / 30}
    assert first_keys(module, 4) == batches[2:]


def test_a_state_loaded_after_the_loader_was_made_counts(
    module: MixedDataModule, mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer
) -> None:
    batches = first_keys(module, 4)
    module.commit()
    state = json.loads(json.dumps(module.state_dict()))  # plain data
    other = make(mmu_manifest, t2i_manifest, tokenizer)
    loader = other.train_dataloader()
    other.load_state_dict(state)
    assert [keys(other, batch) for batch in islice(loader, 3)] == batches[1:]


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


def mmu_set(folder: Path, images: list[bytes], answers: list[str] | None = None) -> Path:
    """Samples talk-0, talk-1, ..."""
    samples = []
    for i, (image, answer) in enumerate(zip(images, answers or ["A"] * len(images), strict=True)):
        turns = [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": answer}]
        samples.append((f"talk-{i}", {"json": json.dumps({"conversations": turns}).encode(), "jpg": image}))
    return write_shards(folder, "mmu", samples, per_shard=4, meta={})


def test_a_bad_image_has_the_same_substitute_wherever_it_is_read(
    tmp_path: Path, t2i_manifest: Path, tokenizer: TextTokenizer
) -> None:
    good = [jpeg(8 * i) for i in range(9)]
    manifest = mmu_set(tmp_path / "mmu", [*good[:4], good[4][:300], *good[5:]])
    module = make(manifest, t2i_manifest, tokenizer, num_workers=0)
    # 9 steps of 2: both epochs meet talk-4 once
    found = list(islice(module.train_dataloader(), 9))
    bad = [each for batch in found for each in batch["bad"]]
    assert [(each["epoch"], each["key"]) for each in bad] == [(0, "talk-4"), (1, "talk-4")]
    assert all(each["reason"] for each in bad)
    trained = [key for batch in found for key in keys(module, batch)["mmu"]]
    assert "talk-4" not in trained
    planned = [key for j in range(9) for key in module.keys("mmu", module.plan.streams["mmu"].at(2 * j, 2))]
    differing = [(was, now) for was, now in zip(planned, trained, strict=True) if was != now]
    assert differing == [("talk-4", each["substitute"]) for each in bad]
    for batch, mine in ((batch, keys(module, batch)["mmu"]) for batch in found):
        for key, image in zip(mine, batch["mmu"]["images"], strict=True):
            assert (image.float().mean() - 8 * int(key.removeprefix("talk-"))).abs() < 3  # the substitute's own pixels
    other = make(manifest, t2i_manifest, tokenizer, num_workers=2)
    assert [batch["bad"] for batch in islice(other.train_dataloader(), 9)] == [batch["bad"] for batch in found]


def test_a_set_without_a_usable_image_stops(tmp_path: Path, t2i_manifest: Path, tokenizer: TextTokenizer) -> None:
    module = make(mmu_set(tmp_path / "mmu", [b"no image"] * 3), t2i_manifest, tokenizer)
    with pytest.raises(DataError, match=r"11 MMU samples in a row cannot be used \(talk-.: no picture of a known kind"):
        next(iter(module.train_dataloader()))


def test_a_damaged_payload_is_never_substituted(tmp_path: Path, t2i_manifest: Path, tokenizer: TextTokenizer) -> None:
    manifest = mmu_set(tmp_path / "mmu", [jpeg(0)])
    tar = manifest.parent / "mmu-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"JFIF", b"JFIX"))
    with pytest.raises(DamagedShardError, match=r"key talk-0: payload \.jpg is not the one that was written"):
        next(iter(make(manifest, t2i_manifest, tokenizer).train_dataloader()))


def test_what_is_no_conversation_is_a_bad_sample(tmp_path: Path, t2i_manifest: Path, tokenizer: TextTokenizer) -> None:
    turn = {"from": "human", "value": "<image>\nQ?"}
    contents = [b"[]", b"{}", b"{", json.dumps({"conversations": [turn]}).encode()]
    samples = [(f"talk-{i}", {"json": content, "jpg": jpeg(0)}) for i, content in enumerate(contents)]
    module = make(write_shards(tmp_path / "mmu", "mmu", samples, per_shard=9, meta={}), t2i_manifest, tokenizer)
    with pytest.raises(DataError, match="no conversation of questions and answers"):
        next(iter(module.train_dataloader()))


def test_a_question_without_room_for_an_answer_is_a_bad_sample(
    tmp_path: Path, t2i_manifest: Path, tokenizer: TextTokenizer
) -> None:
    turns = [{"from": "human", "value": "Q" * 40}, {"from": "gpt", "value": "A"}]
    samples = [("talk-0", {"json": json.dumps({"conversations": turns}).encode(), "jpg": jpeg(0)})]
    module = make(write_shards(tmp_path / "mmu", "mmu", samples, per_shard=9, meta={}), t2i_manifest, tokenizer)
    with pytest.raises(DataError, match=r"no room for an answer; raise model\.mmu_text_length"):
        next(iter(module.train_dataloader()))


def test_without_padding_a_row_is_as_long_as_its_text(
    tmp_path: Path, t2i_manifest: Path, tokenizer: TextTokenizer
) -> None:
    answers = ["a", "abc", "abcdefghij"]
    manifest = mmu_set(tmp_path / "mmu", [jpeg(0)] * 3, answers)
    config = DataConfig(mmu=str(manifest), micro_batch=Counts(mmu=3), pad="none")
    module = MixedDataModule(config, MODEL, tokenizer, tasks=("mmu",), seed=7)
    batch = next(iter(module.train_dataloader()))
    fixed = next(iter(make(manifest, t2i_manifest, tokenizer).train_dataloader()))["mmu"]
    assert fixed["input_ids"].shape == (2, 44)
    mmu = batch["mmu"]
    names = keys(module, batch)["mmu"]
    # prefix 4, question "In: Q?\nOut: " 12, end of text and eot 2
    assert mmu["lengths"] == [18 + len(answers[int(name[-1])]) for name in names]
    assert mmu["input_ids"].shape == (3, 28)
    assert mmu["labels"].shape == (3, 24)
    for ids, labels, length in zip(mmu["input_ids"], mmu["labels"], mmu["lengths"], strict=True):
        assert ids[length - 1] == tokenizer.eot
        assert (ids[length:] == tokenizer.pad).all()
        assert (labels[length - 4 :] == IGNORE).all()


@pytest.mark.parametrize("codes", [bytes(6), b"\xff\x00" * 4])
def test_codes_of_another_vq_are_refused(
    tmp_path: Path, mmu_manifest: Path, tokenizer: TextTokenizer, codes: bytes
) -> None:
    manifest = write_shards(
        tmp_path / "one", "t2i", [("image-0", {"json": b'{"captions": ["x"]}', "vq": codes})], per_shard=1, meta={}
    )
    with pytest.raises(
        DataError,
        match=r"manifest\.json: . VQ codes a sample, up to .* model\.image_tokens=4 below model\.image_vocab=50",
    ):
        make(mmu_manifest, manifest, tokenizer)


def test_a_missing_manifest_is_named(mmu_manifest: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/manifest\.json"):
        make(mmu_manifest, "nowhere/manifest.json", tokenizer)


def test_shards_of_the_other_task_are_refused(mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(ValueError, match=r"holds json, vq but no jpg: these are not mmu shards"):
        make(t2i_manifest, t2i_manifest, tokenizer)
    with pytest.raises(ValueError, match=r"holds jpg, json but no vq: these are not t2i shards"):
        make(mmu_manifest, mmu_manifest, tokenizer)


def test_a_folder_that_cannot_be_written_is_named(
    mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer
) -> None:
    (t2i_manifest.parent / ".cache").write_text("a file where a folder should be")
    with pytest.raises(
        DataError, match=r"cannot be written to .*t2i/\.cache .*name a folder of this node .* data\.cache"
    ):
        make(mmu_manifest, t2i_manifest, tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": -1}, "data.num_workers=-1 must lie in [0, 256]; 2 to 8 feed a GPU"),
        ({"caption_dropout": 1.0}, "data.caption_dropout=1.0 must lie in [0, 1)"),
        ({"bad_limit": 2.0}, "data.bad_limit=2.0 must lie in [0, 1]"),
        ({"template": PromptTemplate(question="Q")}, "data.template.question='Q' must hold {question} once"),
    ],
)
def test_broken_rules_are_named(changes: dict[str, Any], message: str) -> None:
    assert DataConfig(**changes).problems() == [message]
    assert not DataConfig().problems()


class Watcher(pl.LightningModule):
    """Trains a number and notes which samples each step was given; asks Lightning for the number of steps, as
    learning-rate schedules do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[dict[str, list[int]]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append({task: places.indices.tolist() for task, places in batch["places"].items()})
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("epochs", [-1, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_goes_on_with_the_next_samples_even_where_it_looks_at_the_loader_first(
    mmu_manifest: Path,
    t2i_manifest: Path,
    tokenizer: TextTokenizer,
    tmp_path: Path,
    epochs: int,
    accumulation: int,
    workers: int,
) -> None:
    """With finite epochs Lightning 2.6.6 makes the loader before it restores any state (its issue 20550)."""

    def run(steps: int, resumed: Path | None) -> Watcher:
        whole = Counts(mmu=2 * accumulation, t2i=5 * accumulation)
        data = make(mmu_manifest, t2i_manifest, tokenizer, global_batch=whole, num_workers=workers if resumed else 0)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            max_steps=steps,
            accumulate_grad_batches=accumulation,
            callbacks=[CommitPosition()],
            **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
        )
        module = Watcher()
        trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=False)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module

    whole = run(7, None).seen
    assert len(whole) == 7 * accumulation
    run(3, None)
    assert run(7, tmp_path / "3.ckpt").seen == whole[3 * accumulation :]


def test_what_takes_time_is_said(
    mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    config = DataConfig(mmu=str(mmu_manifest), t2i=str(t2i_manifest), cache=str(tmp_path / "cache"))
    for expected in (1, 0):  # the second time all is there
        said: list[str] = []
        MixedDataModule(config, MODEL, tokenizer, tasks=("mmu", "t2i"), seed=7, report=said.append)
        # three and four shards with an index each
        assert f"data.mmu: 6 of 6 files are in {tmp_path / 'cache'}" in said
        assert f"data.t2i: 8 of 8 files are in {tmp_path / 'cache'}" in said
        assert len([line for line in said if line.startswith("making the table of 30 T2I samples")]) == expected


def test_a_folder_means_the_manifest_in_it_and_its_table_goes_beside_the_shards(
    mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer
) -> None:
    by_folder = make(mmu_manifest.parent, t2i_manifest.parent, tokenizer)
    assert list((t2i_manifest.parent / ".cache").glob("t2i-*"))
    assert not (t2i_manifest.parent.parent / ".cache").exists()
    assert by_folder.fingerprints() == make(mmu_manifest, t2i_manifest, tokenizer).fingerprints()
