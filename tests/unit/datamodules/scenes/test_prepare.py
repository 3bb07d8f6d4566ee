import hashlib
import json
import shutil
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.encode import PromptTemplate, encode_conversation
from datamodules.scenes.prepare import PreparedPaths, PrepareScenesConfig, prepare_scenes
from datamodules.scenes.questions import ANSWERS
from datamodules.shards.folders import FolderError
from datamodules.shards.reader import ShardSet
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import load_image_tokenizer

SMALL = {"images": 40, "val_images": 6, "codebook_size": 64, "per_shard": 30}


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> PreparedPaths:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    return prepare_scenes(PrepareScenesConfig(folder=str(folder), **SMALL), say=quiet)


def digests(folder: Path) -> dict[str, str]:
    # the order of the metadata in a safetensors header is not fixed
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_everything_is_there(prepared: PreparedPaths) -> None:
    t2i, captions, instruct = (
        ShardSet.open(path) for path in (prepared.t2i, prepared.mmu_captions, prepared.mmu_instruct)
    )
    assert len(t2i) == len(captions) == 40
    assert len(instruct) == len(json.loads((prepared.scenes / "llava" / "instruct.json").read_text())) > 80
    assert set(t2i.get(0)) == {"json", "vq"}
    assert set(instruct.get(0)) == {"json", "jpg"}
    assert all(shards.meta["counts"]["rejected"] == 0 for shards in (t2i, captions, instruct))


def test_codes_are_those_of_the_pictures(prepared: PreparedPaths) -> None:
    t2i, vq = ShardSet.open(prepared.t2i), load_image_tokenizer(prepared.vq)
    assert (vq.codebook_size, vq.image_size, vq.tokens_per_image) == (64, 64, 256)
    assert t2i.meta["vq"]["fingerprint"] == vq.fingerprint
    sample = t2i.get(17)
    image_id = json.loads(sample["json"])["image_id"]
    with Image.open(prepared.scenes / "train2014" / f"COCO_train2014_{image_id:012d}.jpg") as picture:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    codes = torch.from_numpy(np.frombuffer(sample["vq"], "<u2").astype(np.int64))
    error = vq.decode(codes[None])[0].double() - pixels.double()
    assert error.square().mean() < 0.1 * pixels.double().var()


def test_answers_are_single_tokens_where_the_model_gives_them(prepared: PreparedPaths) -> None:
    tokenizer = TextTokenizer(prepared.tokenizer)
    for answer in [*ANSWERS, "Yes", "No"]:
        _, labels = encode_conversation(tokenizer, [("Is it?", answer)], PromptTemplate(), 40)
        taught = [label for label in labels if label != -100]
        assert len(taught) == 2, answer
        assert tokenizer.decode(taught[:1]) == answer
        assert taught[1] == tokenizer.end_of_text


def test_texts_survive_the_tokenizer(prepared: PreparedPaths) -> None:
    tokenizer = TextTokenizer(prepared.tokenizer)
    content = json.loads((prepared.scenes / "annotations" / "captions_val2014.json").read_text())
    for each in content["annotations"]:
        assert tokenizer.decode(tokenizer.encode(each["caption"])) == each["caption"]


def test_the_same_configuration_gives_the_same_data(prepared: PreparedPaths, tmp_path: Path) -> None:
    again = prepare_scenes(PrepareScenesConfig(folder=str(tmp_path / "again"), **SMALL), say=quiet)
    assert digests(again.folder) == digests(prepared.folder)
    assert load_image_tokenizer(again.vq).fingerprint == load_image_tokenizer(prepared.vq).fingerprint


def test_preparing_again_does_nothing(prepared: PreparedPaths) -> None:
    said: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*")}
    assert prepare_scenes(PrepareScenesConfig(folder=str(prepared.folder), **SMALL), say=said.append) == prepared
    assert {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*")} == before
    assert not said


def test_what_is_ready_is_taken_without_a_lock(
    prepared: PreparedPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a checkout that cannot be written."""
    shutil.copytree(prepared.folder, tmp_path / "data")
    monkeypatch.setattr("datamodules.scenes.prepare.locked_folder", lambda _: pytest.fail("it was locked"))
    config = PrepareScenesConfig(folder=str(tmp_path / "data"), **SMALL)
    assert prepare_scenes(config, say=quiet).folder == tmp_path / "data"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_another_configuration_is_refused(prepared: PreparedPaths) -> None:
    with pytest.raises(FolderError, match=r"seed is 0 there and 1 here.*Choose another folder"):
        prepare_scenes(PrepareScenesConfig(folder=str(prepared.folder), **SMALL, seed=1), say=quiet)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    config = PrepareScenesConfig(folder=str(tmp_path / "data"), images=1, val_images=1, codebook_size=5000)
    with pytest.raises(ValueError, match="different patches, fewer than codebook_size=5000"):
        prepare_scenes(config, say=quiet)
    assert [path.name for path in tmp_path.iterdir()] == [".data.lock"]


def _prepare(folder: str) -> list[str]:
    said: list[str] = []
    config = PrepareScenesConfig(folder=folder, images=8, val_images=2, codebook_size=16)
    ShardSet.open(prepare_scenes(config, say=said.append).mmu_instruct)
    return said


def test_of_several_processes_one_works_and_all_get_the_result(tmp_path: Path) -> None:
    with get_context("spawn").Pool(2) as pool:
        said = pool.map(_prepare, [str(tmp_path / "data")] * 2)
    assert sorted(map(len, said)) == [0, 4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 100}, "vocab_size=100 must be at least 257"),
        ({"codebook_size": 0}, r"codebook_size=0 must lie in \[1, 65536\]"),
        ({"patch_size": 5}, "patch_size=5 does not divide"),
        ({"per_shard": 0}, "per_shard=0 must be at least 1"),
        ({"images": 0}, "images=0 must be at least 1"),
    ],
)
def test_broken_rules_are_named(tmp_path: Path, values, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_scenes(PrepareScenesConfig(folder=str(tmp_path / "data"), **values), say=quiet)
    assert not list(tmp_path.iterdir())
