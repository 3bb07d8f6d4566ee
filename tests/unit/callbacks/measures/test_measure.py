import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from callbacks.measures import running as module
from callbacks.measures.measure import EvaluationContext, Measure, Result
from callbacks.measures.records import Record, read_results
from callbacks.measures.running import OutOfTimeError, isolated, on_all_ranks, run_measure
from modules.exchange import gathered
from modules.files import file_hashes

Make = Callable[..., EvaluationContext]


class Letters(Measure):
    """Ten samples; the metric is their number."""

    key: ClassVar[str] = "letters"
    name = "letters_style"  # type: ignore[assignment]

    def __init__(self, ids: str = "abcdefghij", suffix: str = "") -> None:
        self.ids, self.suffix = list(ids), suffix
        self.made: list[str] = []

    def check(self, context: EvaluationContext) -> None:
        pass

    def sample_ids(self) -> Sequence[str]:
        return self.ids

    def protocol(self, context: EvaluationContext) -> dict[str, Any]:
        return {"suffix": self.suffix}

    def produce(self, context: EvaluationContext, ids: Sequence[str]) -> Iterator[list[Record]]:
        for sample in ids:
            self.made.append(sample)
            yield [{"sample_id": sample, "split": "vowel" if sample in "aei" else "other", "prompt": sample}]

    def assess(self, context: EvaluationContext, records: Sequence[Record]) -> Result:
        order = "".join(record["sample_id"] for record in records)
        return Result(
            metrics={"n": float(len(records))},
            standard_errors={},
            baselines={},
            protocol=self.traced(context, records, order=order),
        )


def test_ranks_share_the_samples_without_padding(make_context: Make) -> None:
    shares = []
    for rank in range(3):
        letters = Letters()
        letters.generate(make_context(rank=rank, world_size=3))
        shares.append("".join(letters.made))
    assert shares == ["adgj", "beh", "cfi"]
    assert Letters().score(make_context()).protocol["order"] == "abcdefghij"


def test_goes_on_where_it_was_cut_short_on_any_number_of_ranks(make_context: Make) -> None:
    for rank in range(2):
        Letters("abcdef").generate(make_context(rank=rank, world_size=2))
    path = make_context().records / "letters_style" / "rank1.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    again = Letters("abcdef")
    again.generate(make_context())
    assert again.made == ["f"]
    assert again.score(make_context()).metrics == {"n": 6.0}


def test_scoring_demands_exactly_the_expected_records(make_context: Make) -> None:
    Letters("abc").generate(make_context())
    with pytest.raises(ValueError, match=r"holds 3 records for 4 samples of letters_style: 1 missing, 0 unknown.* d\."):
        Letters("abcd").score(make_context())
    with pytest.raises(ValueError, match=r"holds 3 records for 2 samples of letters_style: 0 missing, 1 unknown.* c\."):
        Letters("ab").score(make_context())
    with pytest.raises(ValueError, match="suffix: '' there, 'x' now"):
        Letters("abc", suffix="x").score(make_context())


def test_result_says_how_it_was_measured(make_context: Make) -> None:
    context = make_context()
    result = run_measure(Letters("abc", suffix="x"), context)
    assert result is not None
    protocol = read_results(context.records)["letters_style"]["protocol"]
    assert protocol == result.protocol
    assert {key: protocol[key] for key in ("suffix", "step", "n", "splits")} == {
        "suffix": "x",
        "step": 20,
        "n": 3,
        "splits": {"vowel": 1, "other": 2},
    }
    assert protocol["versions"]["numpy"] == np.__version__


def test_stored_result_counts_only_with_its_records(make_context: Make) -> None:
    context, letters = make_context(), Letters("abc")
    assert letters.stored(context) is None
    result = run_measure(letters, context)
    assert letters.stored(context) == result
    (context.records / "letters_style" / "rank0.jsonl").unlink()
    assert letters.stored(context) is None


def test_a_result_from_before_there_were_counts_is_read(make_context: Make) -> None:
    context, letters = make_context(), Letters("abc")
    result = run_measure(letters, context)
    assert result is not None
    path = context.records / "results.json"
    stored = json.loads(path.read_text())
    assert stored["letters_style"].pop("counts") == {}
    path.write_text(json.dumps(stored))
    found = letters.stored(context)
    assert found == result
    assert found is not None
    assert found.n("n") == 3
    stored["letters_style"]["metrics"]["n"] = "3"
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"letters_style in results\.json of .*: metrics\.n is '3', expected a number"):
        letters.stored(context)


@pytest.mark.parametrize("generate", [True, False])
def test_records_without_their_protocol_are_never_scored(make_context: Make, generate: bool) -> None:
    context, letters = make_context(), Letters("abc")
    run_measure(letters, context)
    before = (context.records / "results.json").read_bytes()
    (context.records / "letters_style" / "protocol.json").unlink()
    with pytest.raises(ValueError, match=r"letters_style holds records but no protocol\.json"):
        run_measure(Letters("abc", suffix="x"), context, generate=generate)
    with pytest.raises(ValueError, match=r"letters_style holds records but no protocol\.json"):
        letters.stored(context)
    assert (context.records / "results.json").read_bytes() == before


def test_score_only_generates_nothing(make_context: Make) -> None:
    letters = Letters("ab")
    with pytest.raises(ValueError, match="holds 0 records for 2 samples"):
        run_measure(letters, make_context(), generate=False)
    assert letters.made == []


def states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index,union-attr]


def test_isolated_restores_modes_and_random_states(make_context: Make) -> None:
    model = make_context().model
    model.train()
    model.projector.eval()  # a mixed state, which a plain train() would lose
    modes = [part.training for part in model.modules()]
    before = states()

    def evaluation() -> None:
        with isolated(model):
            assert not any(part.training for part in model.modules())
            assert not torch.is_grad_enabled()
            random.random(), np.random.rand(), torch.rand(1)
            raise KeyError

    with pytest.raises(KeyError):
        evaluation()
    assert [part.training for part in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert states() == before


def test_run_measure_isolates_the_model(make_context: Make) -> None:
    context = make_context()
    context.model.train()

    class Nosy(Letters):
        def produce(self, context: EvaluationContext, ids: Sequence[str]) -> Iterator[list[Record]]:
            assert not context.model.training
            torch.rand(3)
            raise OSError("disk full")
            yield

    before = states()
    with pytest.raises(OSError, match="disk full"):
        run_measure(Nosy(), context)
    assert context.model.training
    assert states() == before


def test_one_process_exchanges_with_itself() -> None:
    assert gathered("x") == ["x"]
    assert on_all_ranks(lambda: 3) == 3


def test_failure_of_another_rank_raises_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gathered", lambda failed: [failed, True])
    with pytest.raises(RuntimeError, match="evaluation failed on rank 1; its own log says why"):
        on_all_ranks(lambda: 3)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.json").write_text(folder)
    both = [tmp_path / "a" / "x.json", tmp_path / "b" / "x.json"]
    hashes = file_hashes(both)
    assert list(hashes) == ["a/x.json", "b/x.json"]
    assert file_hashes(both[:1]) == {"x.json": hashes["a/x.json"]}
    assert hashes["b/x.json"] == hashlib.sha256(b"b").hexdigest()


def test_records_of_other_weights_are_made_anew(make_context: Make, caplog: pytest.LogCaptureFixture) -> None:
    first = Letters("abc")
    run_measure(first, make_context(weights="one"))
    again = Letters("abc")
    assert again.stored(make_context(weights="one")) is not None
    assert again.stored(make_context(weights="two")) is None
    result = run_measure(again, make_context(weights="two", checkpoint="step-000000020 abc"))
    assert again.made == ["a", "b", "c"]
    assert "records made with other weights are discarded" in caplog.text
    assert result is not None
    assert (result.protocol["weights"], result.protocol["checkpoint"]) == ("two", "step-000000020 abc")
    assert result.protocol["code"]
    with pytest.raises(ValueError, match=r"another protocol \(weights: 'two' there, 'one' now\)"):
        run_measure(Letters("abc"), make_context(weights="one"), generate=False)


def test_a_result_goes_with_its_records(make_context: Make) -> None:
    """Else what other weights scored would stand there as this step's if the evaluation is cut short."""
    run_measure(Letters("abc"), make_context(weights="one"))
    with pytest.raises(OutOfTimeError):
        run_measure(Letters("abc"), make_context(weights="two", deadline=0.0))
    assert read_results(make_context().records) == {}


def test_what_takes_too_long_stops_and_goes_on_another_time(make_context: Make) -> None:
    letters = Letters("abcd")
    with pytest.raises(OutOfTimeError, match=r"letters_style has 25% of its records when its time was up"):
        run_measure(letters, make_context(deadline=0.0))
    assert letters.made == ["a"]
    result = run_measure(letters, make_context())
    assert letters.made == ["a", "b", "c", "d"]
    assert result is not None
    assert result.metrics == {"n": 4.0}
