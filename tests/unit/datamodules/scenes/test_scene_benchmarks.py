import re
from collections import Counter

import pytest

from datamodules.scenes.benchmarks import gqa, pope
from datamodules.scenes.draw import Object, Scene, make_scene, render

SCENES = {f"{index}.jpg": make_scene(0, "val", index) for index in range(80)}


@pytest.fixture(scope="module")
def files():
    return pope(SCENES, seed=0)


def asked(line) -> str:
    return re.fullmatch(r"Is there an? (.*) in the image\?", line["text"])[1]


def kind(name: str) -> str:
    return "color" if name.endswith("object") else str(len(name.split()))


def test_pope_labels_follow_from_the_pixels(files, look) -> None:
    seen = {image: look(render(scene)) for image, scene in SCENES.items()}
    for line in (line for lines in files.values() for line in lines):
        words = asked(line).replace("object", "").split()
        there = any(all(word in (s.color, s.shape) for word in words) for s in seen[line["image"]])
        assert line["label"] == ("yes" if there else "no"), line


def test_pope_has_three_questions_of_each_answer_and_kind_says_nothing(files) -> None:
    for lines in files.values():
        assert len(lines) == 6 * len(SCENES)
        assert [line["question_id"] for line in lines] == list(range(1, len(lines) + 1))
        assert list(lines[0]) == ["question_id", "image", "text", "label"]
        assert [line["label"] for line in lines] == ["yes", "no"] * 3 * len(SCENES)
        by_image = Counter((line["image"], kind(asked(line)), line["label"]) for line in lines)
        assert len(by_image) == 6 * len(SCENES)
        assert set(by_image.values()) == {1}


def test_pope_positives_are_the_same_in_the_three_files(files) -> None:
    positives = [
        [(line["image"], line["text"]) for line in lines if line["label"] == "yes"] for lines in files.values()
    ]
    assert positives[0] == positives[1] == positives[2]
    assert files["random"] != files["popular"] != files["adversarial"]


def test_pope_popular_asks_for_the_most_frequent_absent_thing() -> None:
    def one(shape, color):
        return Scene(background=0, objects=(Object(x=16, y=16, shape=shape, color=color, size="large"),))

    scenes = {
        "a": one("circle", "red"),
        "b": one("square", "red"),
        "c": one("square", "blue"),
        "d": one("cross", "blue"),
    }
    lines = pope(scenes, seed=0)["popular"]
    negatives = {asked(line) for line in lines if line["image"] == "a" and line["label"] == "no"}
    # squares occur twice, crosses once; blue twice; the pairs once each, the last in the alphabet is taken
    assert negatives == {"square", "blue object", "red square"}


def test_pope_adversarial_recombines_what_is_there() -> None:
    two = Scene(
        background=0,
        objects=(
            Object(x=16, y=16, shape="circle", color="red", size="large"),
            Object(x=48, y=16, shape="square", color="blue", size="large"),
        ),
    )
    company = Scene(
        background=0,
        objects=(
            Object(x=16, y=16, shape="circle", color="red", size="large"),
            Object(x=48, y=16, shape="cross", color="green", size="large"),
        ),
    )
    lines = pope({"a": two, "b": company}, seed=0)["adversarial"]
    negatives = {asked(line) for line in lines if line["image"] == "a" and line["label"] == "no"}
    assert negatives & {"red square", "blue circle"}
    # of the other shapes and colours, these occurred together with a red circle
    assert {"cross", "green object"} < negatives


def test_gqa_records_have_the_official_fields() -> None:
    records = gqa({"n1": make_scene(0, "val", 3)}, seed=0, per_image=4)
    assert len(records) == 4
    for question_id, record in records.items():
        assert question_id.isdigit()
        assert list(record) == [
            "semantic",
            "entailed",
            "equivalent",
            "question",
            "imageId",
            "isBalanced",
            "groups",
            "answer",
            "semanticStr",
            "annotations",
            "types",
            "fullAnswer",
        ]
        assert record["imageId"] == "n1"
        assert set(record["types"]) == {"detailed", "semantic", "structural"}
        assert set(record["groups"]) == {"global", "local"}
        assert set(record["semantic"][0]) == {"operation", "dependencies", "argument"}


def test_gqa_semantic_string_is_written_as_in_the_official_file() -> None:
    scenes = {f"n{index}": make_scene(0, "val", index) for index in range(40)}
    records = gqa(scenes, seed=0, per_image=9).values()
    query = next(r for r in records if r["types"]["detailed"] == "colorQuery")
    shape = query["semantic"][0]["argument"]
    assert query["semanticStr"] == f"select: {shape}->query: color [0]"


def test_gqa_mixes_the_kinds_of_question_and_entails_only_what_follows() -> None:
    scenes = {f"n{index}": make_scene(0, "val", index) for index in range(80)}
    records = gqa(scenes, seed=0, per_image=5)
    assert {r["types"]["structural"] for r in records.values()} == {"verify", "query", "choose", "logical"}
    assert {r["types"]["semantic"] for r in records.values()} == {"obj", "attr", "cat", "rel", "global"}
    entailing = {key: r for key, r in records.items() if len(r["entailed"]) > 1}
    assert entailing
    for key, record in entailing.items():
        assert record["types"]["structural"] in ("query", "choose")
        for other in set(record["entailed"]) - {key}:
            there = records[other]
            assert there["imageId"] == record["imageId"]
            # knowing the value decides the other question: yes exactly if it asks for that value
            value = there["question"].split()[-1].rstrip("?")
            if record["types"]["detailed"] in ("colorQuery", "shapeQuery"):
                assert (there["answer"] == "yes") == (value == record["answer"])


def test_gqa_has_answers_of_every_family_and_lower_case() -> None:
    records = gqa({f"n{index}": make_scene(0, "val", index) for index in range(40)}, seed=0, per_image=4)
    assert all(record["answer"] == record["answer"].lower() for record in records.values())
    assert {"yes", "no", "2"} < {record["answer"] for record in records.values()}
    for record in records.values():
        assert (record["groups"]["global"] is not None) == (record["types"]["structural"] == "query")
