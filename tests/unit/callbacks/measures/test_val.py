"""The validation loss is the mean cross-entropy of the model's logits, whatever the ranks, and whatever came before."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from callbacks.measures.measure import EvaluationContext, Result
from callbacks.measures.registry import EvaluationConfig, build_pairs, schedule_of
from callbacks.measures.running import isolated
from callbacks.measures.val import Val, ValConfig
from datamodules.data_config import DataConfig
from datamodules.datasets import Samples
from datamodules.encode import encode_caption, encode_conversation
from datamodules.images import mmu_pixels
from datamodules.mixed import MixedDataModule
from datamodules.stored import content_of, turns_of
from modules.omnimamba.config import Task
from modules.omnimamba.model import OmniMamba
from tests.unit.datamodules.conftest import jpeg
from tests.unit.datamodules.writing import write_shards

Make = Callable[..., EvaluationContext]
Opened = dict[Task, Samples]


def turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


@pytest.fixture
def manifests(tmp_path: Path) -> dict[Task, Path]:
    """Eleven conversations with answers of different lengths, and ten captioned pictures of 16 codes."""
    colours = ("red", "green", "blue", "white", "black")
    talks = []
    for i in range(11):
        talk = {"id": i, "conversations": turn("What colour is it?", " ".join(colours[: 1 + i % 5]))}
        talks.append((f"talk-{i}", {"json": json.dumps(talk).encode(), "jpg": jpeg(9 * i)}))
    pictures = [
        (f"image-{i}", {"json": json.dumps({"captions": [f"a {colours[i % 5]} thing"]}).encode(), "vq": codes(i)})
        for i in range(10)
    ]
    return {
        "mmu": write_shards(tmp_path / "mmu", "mmu", talks, per_shard=4, meta={}),
        "t2i": write_shards(tmp_path / "t2i", "t2i", pictures, per_shard=4, meta={}),
    }


def codes(number: int) -> bytes:
    return b"".join(((number + place) % 16).to_bytes(2, "little") for place in range(16))


@pytest.fixture
def opened(manifests: dict[Task, Path], model: OmniMamba, make_context: Make) -> Opened:
    config = DataConfig(mmu=str(manifests["mmu"]), t2i=str(manifests["t2i"]), caption="rotate")
    tokenizer = make_context().tokenizer
    return MixedDataModule(config, model.config, tokenizer, tasks=("mmu", "t2i"), seed=0).samples


def measured(make_context: Make, folder: Path, opened: Mapping[Task, Samples], ranks: int = 1, **config: int) -> Result:
    contexts = [
        make_context(folder=folder, rank=rank, world_size=ranks, validation=lambda: opened) for rank in range(ranks)
    ]
    for context in contexts:
        with isolated(context.model):
            measure = Val(ValConfig(**config))
            measure.check(context)
            assert measure.generate(context)
    return measure.score(contexts[0])


def truth(context: EvaluationContext, opened: Opened, task: Task, indices: list[int]) -> float:
    """The mean over all labelled tokens, one sample at a time, from the logits of every position."""
    model, losses = context.model.eval(), []
    for index in indices:
        fields = opened[task].shards.get(index)
        content = content_of(fields["json"])
        if task == "mmu":
            length = model.config.mmu_text_length
            ids, labels = encode_conversation(context.tokenizer, turns_of(content), context.template, length)
            batch = {"images": mmu_pixels(fields["jpg"], 16)[None], "input_ids": torch.tensor([ids])}
            logits_LV = model.logits(task, batch)[0]
            wanted = [(place, label) for place, label in enumerate(labels, start=-len(labels) - 1) if label != -100]
        else:
            [caption] = json.loads(fields["json"])["captions"]
            ids = encode_caption(context.tokenizer, caption, model.config.caption_length)
            image = [int.from_bytes(fields["vq"][at : at + 2], "little") for at in range(0, 32, 2)]
            logits_LV = model.logits(task, {"caption_ids": torch.tensor([ids]), "image_ids": torch.tensor([image])})[0]
            wanted = list(enumerate(image, start=len(ids) - 2))
        losses += [float(F.cross_entropy(logits_LV[place], torch.tensor(label))) for place, label in wanted]
    return math.fsum(losses) / len(losses)


@torch.no_grad()
def test_it_is_the_mean_cross_entropy_of_the_logits(make_context: Make, opened: Opened, tmp_path: Path) -> None:
    result = measured(make_context, tmp_path / "run", opened)
    for task, n in (("mmu", 11), ("t2i", 10)):
        expected = truth(make_context(), opened, task, list(range(n)))
        assert result.metrics[f"loss_{task}"] == pytest.approx(expected, rel=1e-5)  # float32 sums in another order
        assert result.n(f"loss_{task}") == n
        assert 0 < result.standard_errors[f"loss_{task}"] < expected
    assert result.baselines["loss_t2i"] == pytest.approx(math.log(16))
    assert result.protocol["shards"] == {task: samples.shards.fingerprint for task, samples in opened.items()}


def test_it_is_the_same_to_the_bit_on_any_number_of_ranks(make_context: Make, opened: Opened, tmp_path: Path) -> None:
    one = measured(make_context, tmp_path / "one", opened)
    for ranks in (2, 3, 8):
        assert measured(make_context, tmp_path / str(ranks), opened, ranks).metrics == one.metrics


def test_it_is_the_same_to_the_bit_if_it_was_cut_short(make_context: Make, opened: Opened, tmp_path: Path) -> None:
    one = measured(make_context, tmp_path / "one", opened)
    [lines] = tmp_path.glob("one/records/*/val/rank0.jsonl")
    rows = lines.read_text().splitlines(keepends=True)
    lines.write_text("".join(rows[:6]) + rows[6][:9])  # in the middle of a batch of four, and of a line
    assert measured(make_context, tmp_path / "one", opened).metrics == one.metrics


@torch.no_grad()
def test_a_limit_spreads_over_the_shards(make_context: Make, opened: Opened, tmp_path: Path) -> None:
    result = measured(make_context, tmp_path / "run", opened, limit=3)
    assert result.counts == {"loss_mmu": 3, "loss_t2i": 3}
    assert result.metrics["loss_mmu"] == pytest.approx(truth(make_context(), opened, "mmu", [0, 3, 7]), rel=1e-5)


@torch.no_grad()
def test_a_sample_that_cannot_be_used_is_left_out_and_counted(
    make_context: Make, model: OmniMamba, tmp_path: Path
) -> None:
    texts = {"good": "red", "fine": "blue", "also": "green"}
    samples = [
        (key, {"json": json.dumps({"id": key, "conversations": turn("What?", text)}).encode(), "jpg": jpeg(90)})
        for key, text in texts.items()
    ]
    samples.insert(1, ("bad", {"json": samples[0][1]["json"], "jpg": b"no picture"}))
    config = DataConfig(mmu=str(write_shards(tmp_path / "mmu", "mmu", samples, per_shard=9, meta={})))
    opened = MixedDataModule(config, model.config, make_context().tokenizer, tasks=("mmu",), seed=0).samples
    result = measured(make_context, tmp_path / "run", opened)
    assert result.metrics["unusable_mmu"] == 1
    assert result.counts == {"loss_mmu": 3}
    assert result.metrics["loss_mmu"] == pytest.approx(truth(make_context(), opened, "mmu", [0, 2, 3]), rel=1e-5)


def test_without_shards_it_says_what_to_do(make_context: Make) -> None:
    with pytest.raises(ValueError, match=r"nothing to measure: name a manifest .* as data\.val\.mmu or data\.val\.t2i"):
        Val(ValConfig()).check(make_context())


def test_a_loss_that_is_not_finite_is_refused(make_context: Make, opened: Opened, tmp_path: Path) -> None:
    torch.nn.init.constant_(make_context().model.text_embedding.weight, math.inf)
    with pytest.raises(ValueError, match=r"the loss of mmu/talk-0 in data\.val\.mmu is not a finite number"):
        measured(make_context, tmp_path / "run", opened)


def test_it_has_steps_of_its_own_and_one_size() -> None:
    config = EvaluationConfig(every_n_steps=100, mini=8, val=ValConfig(every_n_steps=20))  # type: ignore[call-arg]
    [(whole, between)] = build_pairs(config)
    assert whole is between
    assert schedule_of(config, whole).every_n_steps == 20
    assert schedule_of(config, Val(ValConfig())).every_n_steps == 100
    assert ValConfig(every_n_steps=-1, limit=0).problems() == [
        "every_n_steps=-1 must be 0 (as evaluation.every_n_steps) or more",
        "limit=0 must be at least 1, or null for all samples",
    ]
