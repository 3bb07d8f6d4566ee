import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.benchmarks.coco import CaptionSet


def write(folder: Path, images: Any = None, annotations: Any = None) -> Path:
    # in no order, as in the official file
    order = [7, 2, 9, 4, 0]
    images = images or [{"id": i, "file_name": f"{i}.jpg"} for i in order]
    annotations = annotations or [
        {"id": 100 - 10 * i - j, "image_id": i, "caption": f" caption {j}\nof {i} \n"} for i in order for j in range(5)
    ]
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    for i in order:
        (folder / f"{i}.jpg").write_bytes(b"")
    return path


def test_choice_is_one_caption_each_of_different_pictures(tmp_path: Path) -> None:
    pairs = CaptionSet.read(write(tmp_path), tmp_path).choose(5, seed=0)
    assert sorted(pair.image_id for pair in pairs) == [0, 2, 4, 7, 9]
    for pair in pairs:
        number = 100 - 10 * pair.image_id - pair.caption_id
        assert pair.caption == f"caption {number} of {pair.image_id}"  # white space as in the training data
        assert pair.image == tmp_path / f"{pair.image_id}.jpg"


def test_choice_depends_on_the_seed_and_not_on_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    chosen = CaptionSet.read(path, tmp_path).choose(3, seed=1)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({key: value[::-1] for key, value in document.items()}))
    assert CaptionSet.read(path, tmp_path).choose(3, seed=1) == chosen
    assert any(CaptionSet.read(path, tmp_path).choose(3, seed=seed) != chosen for seed in range(2, 6))


def test_all_images_are_in_order_of_id(tmp_path: Path) -> None:
    assert [path.stem for path in CaptionSet.read(write(tmp_path), tmp_path).all_images()] == ["0", "2", "4", "7", "9"]


def test_errors(tmp_path: Path) -> None:
    captions = CaptionSet.read(write(tmp_path), tmp_path)
    with pytest.raises(ValueError, match=r"6 pictures asked for, .*captions.json has captions of 5; lower n"):
        captions.choose(6, seed=0)
    (tmp_path / "4.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 5 images .* first is .*4.jpg"):
        captions.all_images()
    with pytest.raises(FileNotFoundError, match=r"4.jpg"):
        captions.choose(5, seed=0)


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([{"id": 1}], None, "image 0 of .* lacks file_name"),
        (None, [{"id": 1, "caption": "x"}], "annotation 0 of .* lacks image_id"),
        (None, [{"id": 1, "image_id": 55, "caption": "x"}], "annotation 1 of .* is of the unlisted image 55"),
    ],
)
def test_broken_files(tmp_path: Path, images: Any, annotations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionSet.read(write(tmp_path, images, annotations), tmp_path)


def test_another_layout(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text("[]")
    with pytest.raises(ValueError, match=r"captions.json must be a JSON object, found list"):
        CaptionSet.read(tmp_path / "captions.json", tmp_path)
