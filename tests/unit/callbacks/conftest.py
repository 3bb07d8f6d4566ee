"""A tiny real model with its parts, and small benchmark files in the official layouts."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image

from callbacks.measures.measure import EvaluationContext
from datamodules.data_config import Counts, DataConfig
from datamodules.encode import PromptTemplate
from datamodules.mixed import MixedDataModule
from datamodules.scenes.vocabulary import train_tokenizer
from modules.omnimamba.config import ModelConfig, VisionConfig
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import PatchKMeans
from tests.unit.datamodules.conftest import MODEL, mmu_manifest, t2i_manifest

__all__ = ["mmu_manifest", "t2i_manifest"]

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer([f"Is there a {c} thing? Yes. No. What colour is it? {c}" for c in COLOURS], path, vocab_size=320)
    return TextTokenizer(path)


@pytest.fixture(scope="session")
def vq() -> PatchKMeans:
    codebook = torch.randint(0, 256, (16, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return PatchKMeans(codebook, image_size=16, patch_size=4)


@pytest.fixture
def model(tokenizer: TextTokenizer) -> OmniMamba:
    config = ModelConfig(
        d_model=16,
        n_layer=2,
        d_state=8,
        headdim=8,
        chunk_size=8,
        tokenizer=str(tokenizer.path),
        vocab_size=-(-len(tokenizer) // 16) * 16,
        image_vocab=16,
        image_tokens=16,
        caption_length=12,
        mmu_text_length=60,
        mmu_positions=240,
        t2i_positions=40,
        projector_hidden=16,
        image_mlp_hidden=16,
        vision=VisionConfig(image_size=16, patch_size=8),
    )
    model = OmniMamba(config)
    initialise(model, 0)
    return model


@pytest.fixture
def make_context(
    model: OmniMamba, tokenizer: TextTokenizer, vq: PatchKMeans, tmp_path: Path
) -> Callable[..., EvaluationContext]:
    def make(**changes: object) -> EvaluationContext:
        values = {
            "model": model,
            "tokenizer": tokenizer,
            "vq": vq,
            "template": PromptTemplate(),
            "device": torch.device("cpu"),
            "step": 20,
            "folder": tmp_path / "run",
            "batch_size": 4,
        }
        return EvaluationContext(**(values | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def speak(monkeypatch: pytest.MonkeyPatch) -> Callable[[EvaluationContext, Mapping[str, str]], list[int]]:
    """Let the model answer by the question that the prompt holds, whatever its weights; returns the batch sizes."""

    def let(context: EvaluationContext, answers: Mapping[str, str]) -> list[int]:
        seen: list[int] = []

        def generate_text(
            images: torch.Tensor, prompt_ids: torch.Tensor, *, max_new_tokens: int, end_id: int
        ) -> torch.Tensor:
            assert images.dtype == torch.uint8
            assert images.shape == (len(prompt_ids), 3, 16, 16)
            seen.append(len(prompt_ids))
            rows = []
            for row in prompt_ids.tolist():
                prompt = context.tokenizer.decode(row)
                [text] = [text for key, text in answers.items() if key in prompt]
                rows.append([*context.tokenizer.encode(text), end_id][:max_new_tokens])
            longest = max(map(len, rows))
            return torch.tensor([row + [end_id] * (longest - len(row)) for row in rows])

        monkeypatch.setattr(context.model, "generate_text", generate_text)
        return seen

    return let


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pope/coco/*.json, gqa_questions.json, captions.json over six pictures: a grey edge and one colour each."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "images").mkdir()
    (folder / "pope" / "coco").mkdir(parents=True)
    for i, colour in enumerate(COLOURS):
        image = Image.new("RGB", (20 + 4 * i, 16), colour)
        image.paste("gray", (0, 0, 6, 16))
        image.save(folder / "images" / f"{i}.jpg")
    for split in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": 2 * i + j, "image": f"{i}.jpg", "text": f"Is there a {asked} thing?", "label": label}
            for i, colour in enumerate(COLOURS)
            for j, (asked, label) in enumerate([(colour, "yes"), (f"very {COLOURS[i - 1]}", "no")])
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "pope" / "coco" / f"coco_pope_{split}.json").write_text(text)
    gqa = {
        str(i): {
            "question": "What colour is it?",
            "imageId": str(i),
            "answer": colour,
            "isBalanced": True,
            "types": {"structural": "query", "semantic": "attr", "detailed": "colour"},
            "groups": {"global": "colour", "local": None},
            "semantic": [{"operation": "query", "argument": "colour", "dependencies": []}],
        }
        for i, colour in enumerate(COLOURS)
    }
    (folder / "gqa_questions.json").write_text(json.dumps(gqa))
    captions = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 16, "width": 20} for i in range(6)],
        "annotations": [
            {"id": 10 * i + j, "image_id": i, "caption": f"{a} {colour} thing\n"}
            for i, colour in enumerate(COLOURS)
            for j, a in enumerate(["a", "the"])
        ],
    }
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder


@pytest.fixture
def data(mmu_manifest: Path, t2i_manifest: Path, tokenizer: TextTokenizer) -> MixedDataModule:
    """A data module over eleven conversations and thirty pictures."""
    config = DataConfig(mmu=str(mmu_manifest), t2i=str(t2i_manifest), micro_batch=Counts(mmu=2, t2i=5))
    return MixedDataModule(config, MODEL, tokenizer, tasks=("mmu", "t2i"), seed=7)
