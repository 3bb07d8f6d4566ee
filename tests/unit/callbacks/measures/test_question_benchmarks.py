"""VQAv2, MME and MMMU from files in their official formats to results: oracle and trivial answers."""

import base64
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from callbacks.measures.answers import QuestionMeasure
from callbacks.measures.measure import EvaluationContext, Result
from callbacks.measures.mme import Mme, MmeConfig
from callbacks.measures.mmmu import Mmmu, MmmuConfig
from callbacks.measures.running import run_measure
from callbacks.measures.vqav2 import VqaV2, VqaV2Config
from datamodules.encode import encode_question
from modules.metrics.mme import COGNITION, PERCEPTION

Make = Callable[..., EvaluationContext]
Speak = Callable[[EvaluationContext, Mapping[str, str]], list[int]]


def picture(colour: str, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(buffer, kind)
    return buffer.getvalue()


def evaluate(measure: QuestionMeasure, context: EvaluationContext) -> Result:
    measure.check(context)
    result = run_measure(measure, context)
    assert result is not None
    return result


# VQAv2: question, type of question, type of answer, ten answers
VQA = [
    ("Is it red?", "is it", "yes/no", ["yes"] * 10),
    ("Is it big?", "is it", "yes/no", ["yes"] * 9 + ["no"]),
    ("Is it far?", "is it", "yes/no", ["no"] * 10),
    ("How many dogs?", "how many", "number", ["2"] * 8 + ["3"] * 2),
    ("What is this?", "what is", "other", ["traffic light"] * 10),
]


def write_vqav2(folder: Path, split: str = "val2014", ids: range = range(5)) -> Path:
    pictures = split.replace("test-dev", "test")
    questions, annotations = [], []
    for number in ids:
        text, question_type, answer_type, answers = VQA[number % 5]
        image = folder / f"COCO_{pictures}_{number:012d}.jpg"
        image.write_bytes(picture("red"))
        questions.append({"image_id": number, "question": text, "question_id": number})
        given = [{"answer": one, "answer_confidence": "yes", "answer_id": i} for i, one in enumerate(answers, start=1)]
        annotations.append(
            {
                "question_type": question_type,
                "multiple_choice_answer": answers[0],
                "answers": given,
                "image_id": number,
                "answer_type": answer_type,
                "question_id": number,
            }
        )
    for name, records in (("questions", questions), ("annotations", annotations)):
        (folder / f"{split}_{name}.json").write_text(json.dumps({"data_subtype": split, name: records}))
    return folder


def vqav2(folder: Path, **changes: Any) -> VqaV2:
    values = {
        "images": str(folder),
        "questions": str(folder / "val2014_questions.json"),
        "annotations": str(folder / "val2014_annotations.json"),
        "data": "scenes",
    }
    return VqaV2(VqaV2Config(**(values | changes)))


def test_vqav2_oracle(tmp_path: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), vqav2(write_vqav2(tmp_path))
    # capitals and full stops are taken off, also where all ten people agree
    speak(context, {text: f"{answers[0].capitalize()}." for text, _, _, answers in VQA})
    result = evaluate(measure, context)
    assert set(result.metrics) >= {"val_overall", "val_overall_normalised", "val_yes_no", "val_question_type/how_many"}
    assert set(result.metrics.values()) == {1.0}
    assert result.standard_errors.keys() == result.metrics.keys()
    assert (result.protocol["n"], result.protocol["splits"]) == (5, {"val2014": 5})
    assert set(result.protocol["files"]) == {"val2014_questions.json", "val2014_annotations.json"}


def test_vqav2_trivial_answer(tmp_path: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), vqav2(write_vqav2(tmp_path))
    speak(context, {"?": "Yes"})
    result = evaluate(measure, context)
    assert result.metrics["val_overall"] == result.baselines["val_overall"] == pytest.approx(2 / 5)
    assert result.metrics["val_overall"] == result.baselines["val_overall_always_yes"]
    assert result.metrics["val_yes_no"] == result.baselines["val_yes_no"] == pytest.approx(2 / 3)
    assert (result.metrics["val_number"], result.baselines["val_number"]) == (0, 1)
    assert result.counts.keys() == result.metrics.keys()
    names = ("overall", "overall_normalised", "yes_no", "number", "question_type/is_it")
    assert [result.n(f"val_{name}") for name in names] == [5, 5, 3, 1, 3]
    assert [measure.is_correct(record) for record in measure.records(context)] == [True, True, False, False, False]


def test_vqav2_part_says_its_size(tmp_path: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), vqav2(write_vqav2(tmp_path), limit=3)
    speak(context, {"?": "Yes"})
    assert "val_3_overall" in evaluate(measure, context).metrics
    assert vqav2(tmp_path, limit=3, data="official").name == "vqav2_mini"


def test_vqav2_test_split_becomes_a_submission(tmp_path: Path, make_context: Make, speak: Speak) -> None:
    write_vqav2(tmp_path, "test-dev2015", range(2))
    write_vqav2(tmp_path, "test2015", range(4))
    context = make_context()
    measure = vqav2(
        tmp_path,
        split="test-dev2015",
        questions=str(tmp_path / "test-dev2015_questions.json"),
        annotations="",
        submission_questions=str(tmp_path / "test2015_questions.json"),
    )
    speak(context, {"?": "A dog's."})
    result = evaluate(measure, context)
    assert (result.metrics, result.standard_errors, result.baselines) == ({}, {}, {})
    assert result.protocol["entries"] == 4
    path = context.records / "vqav2_test-dev2015_style" / result.protocol["submission"]
    assert path.name == "submission_test-dev2015.json"
    assert json.loads(path.read_text()) == [
        {"question_id": 0, "answer": "dog 's"},
        {"question_id": 1, "answer": "dog 's"},
        {"question_id": 2, "answer": ""},
        {"question_id": 3, "answer": ""},
    ]
    measure.publish(context, measure.records(context), None)  # type: ignore[arg-type]  # nothing to log


def test_vqav2_submission_is_of_what_was_asked_if_no_other_file_is_named(
    tmp_path: Path, make_context: Make, speak: Speak
) -> None:
    questions = write_vqav2(tmp_path, "test2015", range(2)) / "test2015_questions.json"
    context, measure = make_context(), vqav2(tmp_path, split="test2015", questions=str(questions), annotations="")
    speak(context, {"?": "two"})
    assert evaluate(measure, context).protocol["entries"] == 2
    path = context.records / measure.name / "submission_test2015.json"
    assert json.loads(path.read_text()) == [{"question_id": number, "answer": "2"} for number in (0, 1)]


def test_vqav2_problems() -> None:
    def problems(**values: Any) -> list[str]:
        return VqaV2Config(images="i", questions="q", **values).problems()

    assert problems(annotations="a") == []
    assert problems(split="test2015") == []
    assert problems() == ["split=val2014, annotations='' is empty; name the annotations JSON"]
    assert problems(split="test2015", annotations="a", limit=5) == [
        "split=test2015, annotations='a' must be empty: its answers are not public",
        "limit=5 with split=test2015: a submission is of all questions; set null",
    ]
    assert problems(annotations="a", submission_questions="s") == [
        "submission_questions belongs to a test split; val2014 is scored here"
    ]


# MME: two pictures a task, the second pair of questions with two spaces
ENDING = "Please answer yes or no."


def write_mme_folder(folder: Path) -> Path:
    for task in PERCEPTION + COGNITION:
        (folder / task).mkdir(parents=True)
        for number in (1, 2):
            (folder / task / f"{number}.jpg").write_bytes(picture("red"))
            lines = [f"Is the {task} {number} {word}?{' ' * number}{ENDING}" for word in ("right", "wrong")]
            (folder / task / f"{number}.txt").write_text(f"{lines[0]}\tYes\n{lines[1]}\tNo\n")
    return folder


def write_mme_table(path: Path) -> Path:
    cell = base64.b64encode(picture("red")).decode()
    rows = ["\t".join(("index", "image", "question", "answer", "category", "image_path"))]
    for task in PERCEPTION + COGNITION:
        for number in (1, 2):
            for word, label in (("right", "Yes"), ("wrong", "No")):
                question = f"Is the {task} {number} {word}? {ENDING}"
                rows.append(f"{len(rows) - 1}\t{cell}\t{question}\t{label}\t{task}\timages/{task}/{number}.jpg")
    path.write_text("\n".join(rows) + "\n")
    return path


def mme(source: Path, **changes: Any) -> Mme:
    return Mme(MmeConfig(**({"source": str(source), "data": "scenes"} | changes)))


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_mme_oracle(tmp_path: Path, make_context: Make, speak: Speak, kind: str) -> None:
    source = write_mme_folder(tmp_path / "MME") if kind == "folder" else write_mme_table(tmp_path / "MME.tsv")
    context, measure = make_context(), mme(source)
    speak(context, {"right": "Yes", "wrong": "No."})
    result = evaluate(measure, context)
    metrics = result.metrics
    assert (metrics["perception"], metrics["cognition"], metrics["n_other"]) == (2000, 800, 0)
    assert metrics["OCR/acc"] == metrics["OCR/acc_plus"] == 1
    assert (result.baselines["perception"], result.baselines["cognition"]) == (500, 200)
    assert (result.protocol["n"], result.protocol["splits"]["OCR"]) == (56, 4)
    assert result.counts.keys() == metrics.keys()
    names = ("perception", "cognition", "n_other", "OCR/acc", "OCR/acc_plus", "OCR/score")
    assert [result.n(name) for name in names] == [40, 16, 56, 4, 2, 4]  # of acc_plus: pictures
    assert list(result.protocol["files"]) == [source.name]


def test_mme_trivial_answer(tmp_path: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), mme(write_mme_folder(tmp_path))
    speak(context, {"Is the": "Yes"})
    result = evaluate(measure, context)
    assert result.metrics == result.baselines
    assert result.metrics["perception"] == 500


def test_mme_asks_with_our_suffix_in_place_of_the_official_end(tmp_path: Path, make_context: Make) -> None:
    measure = mme(write_mme_folder(tmp_path))
    suffix = "\nAnswer the question using a single word or phrase."
    for number in (1, 2):
        question = measure.questions[f"existence/{number}.jpg/1"]
        assert question.question.endswith(ENDING)
        assert measure.asked(question) == f"Is the existence {number} right?{suffix}"
    assert measure.protocol(make_context())["suffix_replaces"] == ENDING


def test_mme_space_behind_the_official_end_does_not_hide_it(tmp_path: Path) -> None:
    folder = write_mme_folder(tmp_path)
    (folder / "OCR" / "1.txt").write_text(f"Is it? {ENDING} \tYes\nIs it not? {ENDING}\tNo\n")
    measure = mme(folder)
    assert measure.asked(measure.questions["OCR/1.jpg/1"]) == f"Is it?{measure.config.suffix}"


def test_mme_protocol_changes_with_any_of_its_files(tmp_path: Path, make_context: Make) -> None:
    measure, context = mme(write_mme_folder(tmp_path)), make_context()
    before = measure.protocol(context)["files"]
    (tmp_path / "OCR" / "2.txt").write_text(f"Is it? {ENDING}\tNo\nIs it not? {ENDING}\tYes\n")
    assert measure.protocol(context)["files"] != before


def test_mme_limit_is_in_pictures(tmp_path: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), mme(write_mme_folder(tmp_path), limit=1)
    speak(context, {"Is the": "maybe"})
    result = evaluate(measure, context)
    assert (result.metrics["perception"], result.metrics["n_other"], result.protocol["n"]) == (0, 28, 28)


# MMMU: id, question, options, answer, type
MMMU = [
    ("Art_1", "Which first?", "['red', 'blue']", "A", "multiple-choice"),
    ("Art_2", "Which second?", "['green', '<image 2>', 'grey']", "B", "multiple-choice"),
    ("Basic_Medical_Science_1", "Which third?", "['black', 'white']", "B", "multiple-choice"),
    ("Math_1", "How much?", "[]", "['12.5', 'twelve and a half']", "short-answer"),
]


def write_mmmu(folder: Path, split: str = "validation") -> Path:
    rows = [
        {
            "id": f"{split}_{name}",
            "question": f"{question} <image 1>",
            "options": options,
            "explanation": "",
            "image_1": {"bytes": picture("red", "PNG"), "path": f"{name}_1.png"},
            "image_2": {"bytes": picture("blue", "PNG"), "path": None} if name == "Art_2" else None,
            "answer": answer,
            "question_type": kind,
        }
        for name, question, options, answer, kind in MMMU
    ]
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema([(key, image if key.startswith("image_") else pa.string()) for key in rows[0]])
    for row in rows:
        path = folder / row["id"].removeprefix(f"{split}_") / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist([row], schema=schema), path)
    return folder


def mmmu(folder: Path, **changes: Any) -> Mmmu:
    return Mmmu(MmmuConfig(**({"folder": str(folder), "data": "scenes"} | changes)))


def test_mmmu_oracle(tmp_path: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), mmmu(write_mmmu(tmp_path))
    speak(context, {"first": "A", "second": "(B)", "third": "The answer is B", "much": "It is 12.50."})
    result = evaluate(measure, context)
    assert result.counts.keys() == result.metrics.keys()
    names = ("overall", "overall_strict", "multiple_choice", "n_fallback", "open", "domain/Science", "subject/Art")
    assert [result.n(f"val_{name}") for name in names] == [4, 4, 3, 3, 1, 1, 2]
    assert result.metrics.pop("val_n_fallback") == 0
    assert set(result.metrics) >= {"val_overall", "val_overall_strict", "val_domain/Science", "val_subject/Art"}
    assert set(result.metrics.values()) == {1.0}
    assert result.standard_errors.keys() == result.metrics.keys()
    assert result.protocol["splits"] == {"Art": 2, "Basic_Medical_Science": 1, "Math": 1}
    assert result.protocol["on_several_pictures"] == 1
    assert "Art_1/validation-00000-of-00001.parquet" in result.protocol["files"]


def test_mmmu_trivial_answer(tmp_path: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), mmmu(write_mmmu(tmp_path))
    speak(context, {"<image 1>": "A"})
    result = evaluate(measure, context)
    assert result.metrics == result.baselines
    assert result.metrics["val_overall"] == 0.25


def test_mmmu_unreadable_choices_are_guessed_and_counted(tmp_path: Path, make_context: Make, speak: Speak) -> None:
    context = make_context()
    speak(context, {"<image 1>": "dunno"})
    scores = {}
    for seed in range(8):
        measure = mmmu(tmp_path if seed else write_mmmu(tmp_path), fallback_seed=seed)
        metrics = evaluate(measure, context).metrics
        assert (metrics["val_overall_strict"], metrics["val_n_fallback"]) == (0, 3)
        assert sum(measure.is_correct(record) for record in measure.records(context)) == 4 * metrics["val_overall"]
        scores[seed] = metrics["val_overall"]
    assert len(set(scores.values())) > 1


def test_mmmu_prompts(tmp_path: Path) -> None:
    write_mmmu(tmp_path)
    asked = {style: mmmu(tmp_path, style=style) for style in ("official", "lmms")}
    choice, free = "Art/validation_Art_2", "Math/validation_Math_1"
    ending = "\nAnswer with the option's letter from the given choices directly."
    for style, options in (
        ("official", "(A) green\n(B) <image 2>\n(C) grey\n"),
        ("lmms", "A. green\nB. <image 2>\nC. grey\n"),
    ):
        measure = asked[style]
        assert measure.asked(measure.questions[choice]) == f"Which second? <image 1>\n{options}{ending}"
        expected = "How much? <image 1>\nAnswer the question using a single word or phrase."
        assert measure.asked(measure.questions[free]) == expected


def test_mmmu_dev_has_another_name_and_other_keys(tmp_path: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), mmmu(write_mmmu(tmp_path, "dev"), split="dev")
    speak(context, {"<image 1>": "A"})
    assert "dev_overall" in evaluate(measure, context).metrics
    assert [mmmu(tmp_path, split="dev", data="official", limit=limit).name for limit in (None, 1)] == [
        "mmmu_dev",
        "mmmu_dev_mini",
    ]


def test_questions_that_are_too_long_are_refused(tmp_path: Path, make_context: Make) -> None:
    write_mmmu(tmp_path)
    measures = mmmu(tmp_path, suffix="?" * 400), vqav2(write_vqav2(tmp_path), suffix="?" * 400)
    for measure, sample in zip(measures, ("Math/validation_Math_1", "val2014/0"), strict=True):
        with pytest.raises(ValueError, match=rf"question {sample} is \d+ ids too long .*model.mmu_positions=240"):
            measure.check(make_context())


def test_answers_get_the_room_that_a_long_question_leaves(tmp_path: Path, make_context: Make) -> None:
    context, measure = make_context(), mmmu(write_mmmu(tmp_path), max_new_tokens=1000)
    measure.generate(context)
    for record in measure.records(context):
        question = measure.questions[record["sample_id"]]
        room = context.model.answer_room(
            len(encode_question(context.tokenizer, measure.asked(question), context.template))
        )
        assert record["truncated"] == (record["n_new_tokens"] == room)


def test_pictures_out_of_tables_are_logged(tmp_path: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), mmmu(write_mmmu(tmp_path))
    speak(context, {"<image 1>": "A"})
    measure.generate(context)
    logged: list[Any] = []

    class Log:
        def log_table(self, *given: Any) -> None:
            logged.append(given)

    measure.publish(context, measure.records(context), Log())  # type: ignore[arg-type]
    [(_, key, columns, rows)] = logged
    assert key == "eval/mmmu_style/answers"
    assert [row[columns.index("image")].size for row in rows] == [(20, 16)] * 4
