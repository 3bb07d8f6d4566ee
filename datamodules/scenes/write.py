"""Writes the scenes as the official files: COCO captions, LLaVA conversations, POPE, GQA."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.scenes.benchmarks import gqa, pope, some_questions
from datamodules.scenes.config import ScenesConfig
from datamodules.scenes.dice import Dice
from datamodules.scenes.draw import IMAGE_SIZE, Scene, Split, make_scene, render
from datamodules.scenes.language import captions
from datamodules.shards.folders import holds, write_origin
from modules.files import new_folder

ORIGIN = "scenes.json"
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""LLaVA-1.5's suffix for short answers."""
DESCRIBE = "Describe the image."
_FORMAT = 1
"""Raise this whenever the same configuration gives other files."""
_FIRST_ID = {"train": 1, "val": 500_001}
"""First image ids. COCO's image ids are unique over all splits."""


def write_scenes(folder: Path, config: ScenesConfig) -> None:
    """Write all files into ``folder``, or none if anything fails; returns at once if it already holds these scenes.

    Raises:
        ValueError: ``config`` breaks a rule.
        FolderError: the folder holds something else.
    """
    if problems := config.problems():
        raise ValueError("scenes: " + "; ".join(problems))
    origin = {"format_version": _FORMAT, **{key: getattr(config, key) for key in ScenesConfig.__dataclass_fields__}}
    if holds(folder, ORIGIN, origin):
        return
    with new_folder(folder) as partial:
        train = _scenes(config, "train", config.images)
        val = _scenes(config, "val", config.val_images)
        _write_images(partial, "train", train)
        _write_images(partial, "val", val)
        _write_llava(partial / "llava", config, train)
        _write_pope(partial / "pope" / "coco", config, val)
        _write_gqa(partial / "gqa", config, val)
        write_origin(partial / ORIGIN, origin)


def image_name(split: Split, image_id: int) -> str:
    """File name of an image, as COCO writes it."""
    return f"COCO_{split}2014_{image_id:012d}.jpg"


def _scenes(config: ScenesConfig, split: Split, count: int) -> dict[int, Scene]:
    """Scenes by image id."""
    first = _FIRST_ID[split]
    return {
        first + index: make_scene(
            config.seed, split, index, min_objects=config.min_objects, max_objects=config.max_objects
        )
        for index in range(count)
    }


def _write_images(folder: Path, split: Split, scenes: Mapping[int, Scene]) -> None:
    """Pictures and COCO captions."""
    pictures = folder / f"{split}2014"
    pictures.mkdir()
    images, annotations = [], []
    for image_id, scene in scenes.items():
        (pictures / image_name(split, image_id)).write_bytes(_jpeg(scene))
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        images.append({"id": image_id, "file_name": image_name(split, image_id), **size})
        annotations += [{"image_id": image_id, "caption": caption} for caption in captions(scene)]
    numbered = [{"id": number, **each} for number, each in enumerate(annotations, start=1)]
    info = {"description": "drawn scenes in COCO's layout", "version": str(_FORMAT)}
    layout = {"info": info, "licenses": [], "images": images, "annotations": numbered}
    _write_json(folder / "annotations" / f"captions_{split}2014.json", layout)


def _jpeg(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    render(scene).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _write_llava(folder: Path, config: ScenesConfig, scenes: Mapping[int, Scene]) -> None:
    """``captions.json`` for stage 1, ``instruct.json`` for the unified stage."""
    described, instructed = [], []
    for image_id, scene in scenes.items():
        image = f"train2014/{image_name('train', image_id)}"
        dice = Dice("llava", config.seed, image_id)
        described.append(_sample(f"{image_id}", image, [("", dice.pick(captions(scene)))]))
        for number in range(config.conversations):
            turns = [
                (each.text + SHORT_ANSWER, each.answer.capitalize() if each.answer in ("yes", "no") else each.answer)
                for each in some_questions(scene, dice, config.turns, config.kinds)
            ]
            instructed.append(_sample(f"{image_id}-{number}", image, turns))
        if dice.chance(config.caption_share):
            turns = [(DESCRIBE, dice.pick(captions(scene)))]
            instructed.append(_sample(f"{image_id}-caption", image, turns))
    _write_json(folder / "captions.json", described)
    _write_json(folder / "instruct.json", instructed)


def _sample(name: str, image: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    conversations = []
    for number, (question, answer) in enumerate(turns):
        marked = "\n".join(filter(None, ("<image>", question))) if number == 0 else question
        conversations += [{"from": "human", "value": marked}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": image, "conversations": conversations}


def _write_pope(folder: Path, config: ScenesConfig, scenes: Mapping[int, Scene]) -> None:
    named = {image_name("val", image_id): scene for image_id, scene in scenes.items()}
    folder.mkdir(parents=True)
    for split, lines in pope(named, config.seed).items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"coco_pope_{split}.json").write_text(text, encoding="utf-8")


def _write_gqa(folder: Path, config: ScenesConfig, scenes: Mapping[int, Scene]) -> None:
    named = {f"n{image_id:012d}": scene for image_id, scene in scenes.items()}
    questions = gqa(named, config.seed, config.gqa_questions, config.kinds)
    _write_json(folder / "testdev_balanced_questions.json", questions)
    (folder / "images").mkdir()
    for image_id, scene in named.items():
        (folder / "images" / f"{image_id}.jpg").write_bytes(_jpeg(scene))


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
