import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from callbacks.measures.answers import QuestionsConfig, answer, table_rows
from callbacks.measures.gqa import Gqa, GqaConfig
from callbacks.measures.measure import EvaluationContext
from callbacks.measures.pope import Pope, PopeConfig
from callbacks.measures.running import run_measure
from datamodules.benchmarks.questions import Question
from datamodules.encode import encode_question

Make = Callable[..., EvaluationContext]
Speak = Callable[[EvaluationContext, Mapping[str, str]], list[int]]


def pope(benchmark: Path, **changes: object) -> Pope:
    values = {"folder": str(benchmark / "pope/coco"), "images": str(benchmark / "images"), "data": "scenes"}
    return Pope(PopeConfig(**(values | {"max_new_tokens": 5} | changes)))  # type: ignore[arg-type]


def gqa(benchmark: Path) -> Gqa:
    return Gqa(
        GqaConfig(
            questions=str(benchmark / "gqa_questions.json"),
            images=str(benchmark / "images"),
            data="scenes",
            max_new_tokens=8,
        )
    )


def by_question(questions: dict[str, Question]) -> dict[str, str]:
    return {question.question: question.answer.capitalize() + "." for question in questions.values()}


def test_pope_oracle_scores_all_points_beside_always_yes(benchmark: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), pope(benchmark)
    seen = speak(context, by_question(measure.questions))
    result = run_measure(measure, context)
    assert result is not None
    assert result.metrics["f1_macro"] == result.metrics["acc_macro"] == 1
    assert result.metrics["unparsed_ratio"] == 0
    assert result.standard_errors["f1_macro"] == 0
    assert result.baselines["acc_macro"] == 0.5
    assert result.protocol["n"] == 36
    assert result.counts.keys() == result.metrics.keys()
    names = ("f1_macro", "f1_pooled", "unparsed_ratio", "f1_random", "random/f1", "popular/unparsed_ratio")
    assert [result.n(name) for name in names] == [36, 36, 36, 12, 12, 12]
    assert result.protocol["splits"] == {"random": 12, "popular": 12, "adversarial": 12}
    assert set(result.protocol["files"]) == {f"coco_pope_{s}.json" for s in ("random", "popular", "adversarial")}
    lengths = Counter(
        len(encode_question(context.tokenizer, question.question, context.template))
        for question in measure.questions.values()
    )
    assert len(lengths) > 1
    # full batches of four for every length, and a rest
    assert sorted(seen) == sorted(min(4, n - start) for n in lengths.values() for start in range(0, n, 4))


def test_pope_trivial_answer_scores_its_baseline(benchmark: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), pope(benchmark)
    speak(context, {"thing": "Yes"})
    result = run_measure(measure, context)
    assert result is not None
    assert result.metrics == result.baselines


def test_gqa_oracle_and_trivial_answer(benchmark: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), gqa(benchmark)
    speak(context, {"What colour": "Blue."})
    result = run_measure(measure, context)
    assert result is not None
    # six colours, each once: one fixed answer is right once
    assert result.metrics["accuracy"] == result.baselines["accuracy"] == pytest.approx(1 / 6)
    oracle = [record | {"raw": record["gold"].upper() + "."} for record in measure.records(context)]
    assert measure.assess(context, oracle).metrics["accuracy"] == 1


def test_gqa_consistency_and_choices_where_their_files_are_given(
    benchmark: Path, make_context: Make, speak: Speak, tmp_path: Path
) -> None:
    records = json.loads((benchmark / "gqa_questions.json").read_text())
    records["0"]["entailed"] = ["0", "10", "11"]
    (tmp_path / "balanced_questions.json").write_text(json.dumps(records))
    more = {key: records["1"] | {"isBalanced": False, "answer": answer} for key, answer in (("10", "red"), ("11", "x"))}
    (tmp_path / "all_questions.json").write_text(json.dumps(records | more))
    allowed = {key: {"valid": ["red"], "plausible": []} for key in records}
    (tmp_path / "choices.json").write_text(json.dumps(allowed))

    def asking(**files: str) -> Gqa:
        files = {key: str(tmp_path / name) for key, name in files.items()}
        images = str(benchmark / "images")
        return Gqa(GqaConfig(images=images, data="scenes", max_new_tokens=8, **files))

    measure = asking(questions="balanced_questions.json", all_questions="all_questions.json", choices="choices.json")
    context = make_context()
    speak(context, {"What colour": "Red."})
    measure.check(context)
    result = run_measure(measure, context)
    assert result is not None
    assert result.metrics["accuracy"] == pytest.approx(1 / 6)
    assert result.metrics["consistency"] == 0.5
    # eight questions were asked: six balanced ones, of which the one that is answered correctly entails two others
    assert (result.protocol["n"], result.n("accuracy"), result.n("consistency"), result.n("validity")) == (8, 6, 1, 6)
    assert result.counts.keys() == result.metrics.keys()
    assert (result.metrics["validity"], result.metrics["plausibility"]) == (1, 0)
    assert result.protocol["splits"] == {"balanced": 6, "all": 2}
    assert set(result.protocol["files"]) == {"balanced_questions.json", "all_questions.json"}
    with pytest.raises(FileNotFoundError, match=r"none.json does not exist"):
        asking(questions="balanced_questions.json", choices="none.json").check(context)


@pytest.mark.parametrize("key", ["raw", "gold", "image", "question", "prompt", "split"])
def test_a_record_without_a_key_that_scoring_needs_is_named(
    key: str, benchmark: Path, make_context: Make, speak: Speak
) -> None:
    context, measure = make_context(), pope(benchmark)
    speak(context, {"thing": "Yes"})
    measure.generate(context)
    path = context.records / "pope_style" / "rank0.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    del records[2][key]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(
        ValueError, match=rf"line 3 of .*rank0\.jsonl is damaged \(row: {key} is missing\); delete the file"
    ):
        run_measure(measure, context, generate=False)


def test_what_is_logged_of_few_answers_goes_by_a_name_of_its_own(
    benchmark: Path, make_context: Make, speak: Speak
) -> None:
    context, measure = make_context(), pope(benchmark)
    speak(context, {"thing": "Yes"})
    measure.generate(context)
    logged = Mock()
    measure.publish(context, measure.records(context), logged)
    measure.mini = True
    measure.publish(context, [], logged)
    keys = [call.args[1] for call in logged.log_table.call_args_list]
    assert keys == ["eval/pope_style/answers", "eval_mini/pope_style/answers"]


def test_a_suffix_that_the_question_has_is_not_said_twice(benchmark: Path) -> None:
    measure = pope(benchmark)
    question = measure.questions["random/0"]
    with_suffix = replace(question, question=question.question + measure.config.suffix)
    assert measure.asked(question) == measure.asked(with_suffix) == with_suffix.question


def test_records_hold_what_was_asked_and_said(benchmark: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), pope(benchmark, limit=1)
    speak(context, {"thing": "Yes"})
    measure.generate(context)
    assert measure.records(context)[0] == {
        "sample_id": "random/0",
        "split": "random",
        "image": "0.jpg",
        "question": "Is there a red thing?",
        "prompt": "In: Is there a red thing?\nAnswer the question using a single word or phrase.\nOut: ",
        "raw": "Yes",
        "gold": "yes",
        "n_new_tokens": len(context.tokenizer.encode("Yes")),
        "truncated": False,
    }


def test_real_model_answers_alike_in_any_batch_and_on_any_number_of_ranks(
    benchmark: Path, make_context: Make, tmp_path: Path
) -> None:
    found = []
    for batch_size, world_size in ((1, 1), (5, 1), (3, 2)):
        folder = tmp_path / f"{batch_size}-{world_size}"
        measure = pope(benchmark, limit=3)
        for rank in range(world_size):
            context = make_context(folder=folder, batch_size=batch_size, rank=rank, world_size=world_size)
            with torch.no_grad():
                measure.generate(context)
        found.append(measure.records(context))
    assert found[0] == found[1] == found[2]
    # the untrained model does not end its answers
    assert all(record["truncated"] == (record["n_new_tokens"] == 5) for record in found[0])


def test_answers_end_before_the_first_end_token(
    benchmark: Path, make_context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context()
    end = context.tokenizer.end_of_text
    no = context.tokenizer.encode("No")
    rows = torch.tensor([[*no, end, *no], [*no, *no, no[0]], [end] * (2 * len(no) + 1)])
    monkeypatch.setattr(context.model, "generate_text", lambda *_, **__: rows)
    prompt = encode_question(context.tokenizer, "?", context.template)
    answers = answer(context, [benchmark / "images/0.jpg"] * 3, [prompt] * 3, 7)
    assert answers[0] == ("No", len(no), False)
    assert answers[1][1:] == (2 * len(no) + 1, True)
    assert answers[2] == ("", 0, False)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"data": "official"}, "pope"),
        ({"data": "official", "limit": 300}, "pope_mini"),
        ({"data": "scenes"}, "pope_style"),
        ({"data": "scenes", "limit": 300}, "pope_style"),
    ],
)
def test_only_the_official_questions_have_the_official_name(
    benchmark: Path, changes: dict[str, object], name: str
) -> None:
    assert pope(benchmark, **changes).name == name


def test_check_finds_missing_files(tmp_path: Path, benchmark: Path, make_context: Make) -> None:
    with pytest.raises(FileNotFoundError, match=r"coco_pope_random.json does not exist"):
        pope(benchmark, folder=str(tmp_path)).check(make_context())


def test_table_has_fixed_rows_and_errors_and_pictures(benchmark: Path, make_context: Make, speak: Speak) -> None:
    context, measure = make_context(), pope(benchmark)
    speak(context, {"thing": "Yes"})
    measure.generate(context)
    logged: list[tuple[object, ...]] = []

    class Log:
        def log_table(self, *given: object) -> None:
            logged.append(given)

    measure.publish(context, measure.records(context), Log())  # type: ignore[arg-type]
    [(step, key, columns, rows)] = logged
    assert (step, key) == (20, "eval/pope_style/answers")
    assert len(rows) == 36  # type: ignore[arg-type]
    first = dict(zip(columns, rows[0], strict=True))  # type: ignore[call-overload,index]
    assert (first["raw"], first["gold"], first["correct"]) == ("Yes", "yes", True)
    assert first["image"].size == (20, 16)


def test_table_rows_are_half_fixed_and_half_errors() -> None:
    records = [{"sample_id": str(i)} for i in range(1000)]
    for offset in (0, 1):
        correct = [i % 3 != offset for i in range(1000)]
        rows = [int(record["sample_id"]) for record in table_rows(records, correct)]
        assert rows[:25] == list(range(0, 1000, 40))
        assert len(set(rows)) == len(rows) == 50
        assert all(not correct[i] for i in rows[25:])
    assert len(table_rows(records, [True] * 1000)) == 25
    assert table_rows(records[:3], [True] * 3) == records[:3]


def test_problems() -> None:
    assert QuestionsConfig().problems() == []
    [limit, tokens] = QuestionsConfig(limit=0, max_new_tokens=0).problems()
    assert limit == "limit=0 must be at least 1; null takes all questions"
    assert tokens == "max_new_tokens=0 must be at least 1"
