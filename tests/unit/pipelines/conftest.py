"""A run folder with a tiny untrained model and every measure configured, over scenes drawn here."""

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from callbacks.measures.fid_config import FidConfig
from callbacks.measures.gqa import GqaConfig
from callbacks.measures.pope import PopeConfig
from callbacks.measures.registry import EvaluationConfig
from callbacks.measures.samples import SamplesConfig
from datamodules.data_config import DataConfig
from datamodules.scenes.prepare import PreparedPaths, PrepareScenesConfig, prepare_scenes
from modules.checkpoints import STATE, commit
from modules.files import step_name
from modules.model_files import KEY, ModelFiles
from modules.omnimamba.config import ModelConfig, VisionConfig
from modules.omnimamba.initialise import initialise
from modules.omnimamba.model import OmniMamba
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import load_image_tokenizer
from modules.stages import StageConfig
from pipelines.run.config import RunConfig, TrainerConfig, as_dict


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedPaths:
    folder = tmp_path_factory.mktemp("prepared") / "scenes"
    config = PrepareScenesConfig(folder=str(folder), images=12, val_images=4, codebook_size=16, patch_size=16)
    return prepare_scenes(config, say=lambda _: None)


@pytest.fixture(scope="session")
def finished_run(prepared: PreparedPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    model = ModelConfig(
        d_model=16,
        n_layer=1,
        d_state=8,
        headdim=8,
        chunk_size=16,
        tokenizer=str(prepared.tokenizer),
        vocab_size=528,
        image_vocab=16,
        image_tokens=16,
        caption_length=24,
        mmu_text_length=60,
        mmu_positions=200,
        t2i_positions=60,
        projector_hidden=16,
        image_mlp_hidden=16,
        vision=VisionConfig(image_size=64, patch_size=16),
        vq=str(prepared.vq),
    )
    scenes = prepared.scenes
    captions, images = str(scenes / "annotations" / "captions_val2014.json"), str(scenes / "val2014")
    evaluation = EvaluationConfig(
        pope=PopeConfig(folder=str(scenes / "pope/coco"), images=images, data="scenes", limit=2, max_new_tokens=2),
        gqa=GqaConfig(
            questions=str(scenes / "gqa/testdev_balanced_questions.json"),
            images=str(scenes / "gqa/images"),
            data="scenes",
            limit=2,
            max_new_tokens=2,
        ),
        fid=FidConfig(captions=captions, images=images, n=2),
        samples=SamplesConfig(prompts=("a red circle",), top_k=8),
    )
    config = RunConfig(
        name="tiny",
        stage=StageConfig(name="unified_finetune"),
        trainer=TrainerConfig(max_steps=20),
        model=model,
        data=DataConfig(mmu=str(prepared.mmu_instruct), t2i=str(prepared.t2i)),
        evaluation=evaluation,
    )
    folder.mkdir()
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(as_dict(config))))
    weights = OmniMamba(model)
    initialise(weights, 0)
    temporary = folder / "checkpoints" / "new"
    temporary.mkdir(parents=True)
    state = {f"model.{name}": value for name, value in weights.state_dict().items()}
    files = ModelFiles.of(TextTokenizer(prepared.tokenizer), load_image_tokenizer(prepared.vq))
    run = {KEY: files.as_dict()}
    torch.save({"state_dict": state, "global_step": 20, "run": run}, temporary / STATE)
    commit(temporary, folder / "checkpoints" / step_name(20), 20)
    return folder


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of its own for every test."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
