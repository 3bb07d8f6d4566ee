"""The report: one page that needs nothing else, says what is there, and bears whatever a folder holds."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from callbacks.measures.gqa import Gqa
from callbacks.measures.registry import build_measures
from modules.metrics.paper import TABLES, paper_value
from pipelines.report import __main__ as verb
from pipelines.report.page import write_report
from pipelines.report.read import read_runs
from pipelines.report.scores import scoreboard
from pipelines.report.tables import result_rows
from pipelines.run.config import load
from tests.verbs import call

from .reporting import BAD, Page, add_results, add_samples, make_run, result, write_json, write_lines

ROOT = Path(__file__).parents[4]


def report(*runs: Path) -> Page:
    return Page(write_report(list(runs), runs[0].parent / "out" / "report.html"))


def assert_only_our_script(page: Page) -> None:
    """The page has the one script of the repository, and its policy lets a browser run that and nothing else."""
    assert page.all("script") == [{}]
    assert page.script == (ROOT / "pipelines/report/report.js").read_text()
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    [policy] = [tag["content"] or "" for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    assert [key for _, tag in page.tags for key in tag if key.startswith("on")] == []


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    add_results(run, 6, {"pope": result({"f1_macro": 0.5, "random/f1": 0.5})})
    add_samples(run, 6, ["a red circle"])
    page = report(run, make_run(tmp_path / "two"))
    assert_only_our_script(page)
    addresses = [tag.get(key) for _, tag in page.tags for key in ("src", "href", "xlink:href") if key in tag]
    assert addresses
    assert [a for a in addresses if not (a or "").startswith(("#", "data:"))] == []
    assert re.findall(r"@import|url\((?!#)", page.html) == []
    ids = [tag["id"] for _, tag in page.tags if "id" in tag]
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]*)\)", page.html) + [a[1:] for a in addresses if a and a.startswith("#")]
    assert set(used) <= set(ids)


def test_runs_are_overlaid_and_told_apart(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one", steps=4), make_run(tmp_path / "two", steps=8)
    page = report(one, two)
    assert page.of_class("chart") == 1
    assert "1 → 0.25" in page.text
    assert "1 → 0.125" in page.text
    assert "complete at step 4" in page.text
    svg = re.findall(r"<svg.*?</svg>", page.html, re.DOTALL)[0]
    assert re.findall(r'<g class="(.*?)">', svg) == ["of-0", "of-1"]
    assert re.findall(r"\.of-(\d) { --tint: var\(--c(\d)\)", page.html) == [("0", "0"), ("1", "1")]


def test_two_runs_of_the_same_name_are_shown_by_their_paths(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "a/run"), make_run(tmp_path / "b/run"))
    assert str(tmp_path / "a/run") in page.text
    assert str(tmp_path / "b/run") in page.text


def test_everything_that_a_run_says_is_escaped(tmp_path: Path, run_folder: Path) -> None:
    run = run_folder.rename(tmp_path / "<b>run")
    row = {"step": 1, "time": 1.0, "attempt": 1, f"train/{BAD}": 1.0, f"eval/{BAD}/x": 2.0}
    write_lines(run / "metrics.jsonl", [row])
    attempt = {"time": 1.0, "resumed": BAD, "code": BAD, "machine": BAD, "data": {"mmu": BAD}}
    write_json(run / "provenance.json", {"wandb_run_id": BAD, "attempts": [attempt, attempt]})
    add_results(run, 1, {"pope_style": result({BAD: 1.0}, protocol={"n": BAD, "baseline": BAD}, baselines={BAD: 1.0})})
    add_samples(run, 1, [BAD])
    asked = {"sample_id": BAD, "question": BAD, "raw": BAD, "gold": BAD, "image": BAD}
    write_lines(run / "records/step-000000001/pope_style/rank0.jsonl", [asked])
    bad = {"step": 1, "attempt": 1, "rank": 0, "task": "mmu", "epoch": 0, "key": BAD, "reason": BAD, "substitute": "x"}
    write_lines(run / "bad_samples.jsonl", [bad])
    page = report(run)
    assert_only_our_script(page)
    assert page.all("b") == [{}]  # the template's own, around the answer
    assert page.text.count(BAD) >= 12
    assert "<b>run" in page.text


def test_of_a_step_taken_again_the_later_attempt_counts_and_both_are_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [(1, 1, 1.0), (2, 1, 5.0), (3, 1, 6.0), (2, 2, 2.0), (3, 2, 4.0)]
    write_lines(run / "metrics.jsonl", [{"step": s, "time": 1.0, "attempt": a, "train/loss": v} for s, a, v in rows])
    attempts: list[dict[str, Any]] = [
        {"time": 1.0, "resumed": None, "code": "first"},
        {"time": 2.0, "resumed": "step-000000001", "code": "second"},
    ]
    write_json(run / "provenance.json", {"wandb_run_id": "x", "attempts": attempts})
    page = report(run)
    assert "1 → 4" in page.text
    assert "dotted: restarts; faint: repeated by a later attempt" in page.text
    for part in ("step-000000001", "code: second", "its beginning"):
        assert part in page.text


def test_a_result_stands_beside_baseline_error_and_paper(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    scored = {"standard_errors": {"f1_macro": 0.0125}, "baselines": {"f1_macro": 0.6667}}
    protocol = {"n": 9000, "baseline": "always yes"}
    add_results(run, 0, {"pope": result({"f1_macro": 0.25}, protocol=protocol)})
    add_results(run, 6, {"pope": result({"f1_macro": 0.8175}, protocol=protocol, **scored)})
    page = report(run)
    for part in ("0.25 (step 0)", "0.8175 (step 6)", "0.013", "0.6667", "baseline: always yes", "9000", "0.863"):
        assert part in page.text
    assert "Table 1: understanding" in page.text
    assert "Table 2" not in page.text
    assert "81.8 ± 1.2" in page.text  # in the paper's unit
    assert "LLaVA-v1.5 86.3 1500.1 81.8 64.7 –" in re.sub(r"<[^>]*>|\s+", " ", page.html).replace("  ", " ").replace(
        "  ", " "
    )


def test_the_n_beside_a_number_is_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    measured = result({"accuracy": 0.5, "open": 0.25, "n": 1.0}, counts={"accuracy": 6, "open": 2}, protocol={"n": 8})
    add_results(run, 6, {"gqa": measured, "old": result({"accuracy": 0.5}), "odd": measured | {"counts": [6]}})
    [read] = read_runs([run])
    found = [(row.measure, row.metric, row.n) for row in result_rows([read])]
    assert found == [("gqa", "accuracy", "6"), ("gqa", "open", "2"), ("gqa", "n", "8"), ("old", "accuracy", "8")]
    assert any("holds no result under odd" in note for note in read.notes)


@pytest.mark.parametrize("measure", ["pope_style", "pope_mini", "gqa_style", "coco_style", "fd_pool", "speed_mini"])
def test_a_reduced_or_substitute_measure_has_no_row_of_the_paper(tmp_path: Path, measure: str) -> None:
    run = make_run(tmp_path / "run")
    metrics = dict.fromkeys(("f1_macro", "accuracy", "fid30k", "img_per_s"), 0.5)
    add_results(run, 6, {measure: result(metrics)})
    page = report(run)
    assert "No official measure was evaluated" in page.text
    assert "OmniMamba" not in page.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (("pope", "f1_macro"), 0.863),
        (("gqa", "accuracy"), 0.608),
        (("mme", "perception"), 1290.6),
        (("mmmu", "val_overall"), 0.306),
        (("coco", "fid30k"), 5.50),
        (("speed", "img_per_s"), 5.68),
        (("speed", "total_s"), 2.81),
        (("coco", "fid5k"), None),
        (("coco_t2ib", "fid30k"), None),
        (("pope", "acc_macro"), None),
    ],
)
def test_the_papers_numbers_in_our_unit(key: tuple[str, str], value: float | None) -> None:
    assert paper_value(key) == (None if value is None else pytest.approx(value))


def test_the_papers_tables_have_a_cell_for_every_column() -> None:
    for table in TABLES:
        assert {len(row) for row in table.rows.values()} == {len(table.columns)}


def test_answers_are_marked_by_the_rule_that_scores_them(run_folder: Path) -> None:
    said = [("Yes, no doubt", "no"), ("nope", "no"), ("Yes", "yes")]  # right, wrong, right: LLaVA's parser
    rows = [
        {"sample_id": f"random/{i}", "question": f"question {i}", "raw": raw, "gold": gold, "image": "x.jpg"}
        for i, (raw, gold) in enumerate(said)
    ]
    write_lines(run_folder / "records/step-000000020/pope_style/rank0.jsonl", rows[:2])
    write_lines(run_folder / "records/step-000000020/pope_style/rank1.jsonl", rows[2:])
    add_results(run_folder, 20, {"pope_style": result({"f1_macro": 0.5})})
    page = report(run_folder)
    assert "pope_style at step 20, 2 of 3 right" in page.text
    assert (page.of_class("right"), page.of_class("wrong")) == (2, 1)
    assert re.search(r"question 1 ✗ nope true: no", re.sub(r"\s+", " ", page.text))


def test_a_question_shows_its_picture_where_it_lies_here(run_folder: Path) -> None:
    gqa = next(m for m in build_measures(load(run_folder / "config.yaml").evaluation) if isinstance(m, Gqa))
    question = next(iter(gqa.questions.values()))
    asked = [(question.sample_id, Path(str(question.image)).name), ("testdev_balanced/none", "gone.jpg")]
    rows = [{"sample_id": s, "question": "q", "raw": "a", "gold": "a", "image": image} for s, image in asked]
    write_lines(run_folder / "records/step-000000020/gqa_style/rank0.jsonl", rows)
    add_results(run_folder, 20, {"gqa_style": result({"accuracy": 1.0})})
    page = report(run_folder)
    assert [tag["alt"] for tag in page.all("img")] == [asked[0][1]]
    assert page.of_class("answer") == 2


def test_a_benchmark_that_lies_elsewhere_costs_the_pictures_only(run_folder: Path) -> None:
    config = run_folder / "config.yaml"
    config.write_text(config.read_text().replace("gqa/testdev", "gqa/elsewhere"))
    row = {"sample_id": "1", "question": "q", "raw": "a", "gold": "a", "image": "x.jpg"}
    write_lines(run_folder / "records/step-000000020/gqa_style/rank0.jsonl", [row])
    add_results(run_folder, 20, {"gqa_style": result({"accuracy": 1.0})})
    page = report(run_folder)
    assert page.all("img") == []
    assert "gqa_style at step 20, 1 of 1 right" in page.text


def test_what_few_samples_say_is_drawn_with_its_own_errors(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    values = {3: 0.25, 6: 0.5}
    rows = [{"step": s, "time": 1.0, "attempt": 1, "eval_mini/pope/f1_macro": value} for s, value in values.items()]
    write_lines(run / "metrics.jsonl", rows)
    for step, value in values.items():
        scored = {"standard_errors": {"f1_macro": 0.125}, "baselines": {"f1_macro": 0.6667}}
        add_results(run, step, {"pope_mini": result({"f1_macro": value}, **scored)})
    page = report(run)
    assert "eval_mini/pope/f1_macro" in page.text
    assert "dashed grey: trivial baseline; bars: ± standard error" in page.text
    assert page.html.index('<section id="evaluation">') < page.html.index("eval_mini/pope/f1_macro")
    assert page.html.index("eval_mini/pope/f1_macro") < page.html.index('<section id="runs">')


def test_what_was_logged_once_or_never_changed_is_a_line_and_no_chart(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [{"step": s, "time": 1.0, "attempt": 1, "train/loss": 1.0 / s, "data/bad_samples_mmu": 0} for s in (1, 2)]
    write_lines(run / "metrics.jsonl", [*rows, rows[0] | {"step": 3, "eval/pope/f1_macro": 0.5, "eval/odd/error": 1}])
    add_results(run, 3, {"pope": result({"f1_macro": 0.5})})
    page = report(run)
    assert page.of_class("chart") == 1
    assert "data/bad_samples_mmu 0 at all 3 logged steps" in page.text
    assert "eval/odd/error 1 at step 3" in page.text
    assert "eval/pope/f1_macro" not in page.text  # the table of results says it
    assert "0.5 (step 3)" in page.text


def test_the_scoreboard_stands_first_and_says_what_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    more = {"standard_errors": {"f1_macro": 0.0125}, "baselines": {"f1_macro": 0.6667}}
    protocol = {"n": 9000, "baseline": "always yes"}
    add_results(run, 0, {"pope": result({"random/f1": 0.1, "f1_macro": 0.25, "yes_ratio": 1.0}, protocol=protocol)})
    add_results(run, 6, {"pope": result({"random/f1": 0.1, "f1_macro": 0.8175}, protocol=protocol, **more)})
    add_results(run, 4, {"coco": result({"fid30k": 5.5})})
    rows = [{"step": s, "time": 1.0, "attempt": 1, "train/loss": 9.0, "train/loss_t2i": v} for s, v in ((1, 2), (6, 3))]
    write_lines(run / "metrics.jsonl", rows)
    pope, coco, loss = scoreboard(read_runs([run]))
    assert (pope.measure, pope.metric, pope.value, pope.error, pope.n) == (
        "pope",
        "f1_macro",
        "0.8175",
        "0.013",
        "9000",
    )
    assert (pope.change, pope.since, pope.improved) == ("+0.568", 0, True)
    assert (pope.baseline, pope.baseline_name, pope.paper) == ("0.6667", "always yes", "0.863")
    assert (coco.metric, coco.change, coco.paper, coco.improved) == ("fid30k", "–", "5.5", None)
    assert (loss.metric, loss.value, loss.change, loss.improved) == ("loss_t2i", "3", "+1", False)
    page = report(run)
    headings = re.findall(r"<h2>(.*?)</h2>", page.html)
    assert headings[0] == "Scoreboard"
    assert re.search(r"0\.8175 ± 0\.013 ?step 6, N 9000 ?\+0\.568 ?since step 0", re.sub(r"\s+", " ", page.text))


def test_charts_run_over_steps_samples_and_hours_of_work(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    attempts = [{"time": 0.0, "resumed": None}, {"time": 36000.0, "resumed": "step-000000002"}]
    write_json(run / "provenance.json", {"wandb_run_id": "x", "attempts": attempts})
    taken = [(1, 1, 3600.0), (2, 1, 7200.0), (3, 2, 36000.0 + 1800.0)]  # eight hours in between do not count
    rows = [
        {"step": s, "time": t, "attempt": a, "train/loss": 1 / s, "data/samples_mmu": 3 * s, "data/samples_t2i": 48 * s}
        for s, a, t in taken
    ]
    write_lines(run / "metrics.jsonl", rows)
    page = report(run)
    losses = page.html[page.html.index('<section id="losses">') :]
    places = re.findall(r'data-axis="(\w+)".*?data-x="(.*?)" data-y="(.*?)"', losses, re.DOTALL)[:3]
    values = "1 0.5 0.3333"
    assert places == [("step", "1 2 3", values), ("samples", "51 102 153", values), ("hours", "1 2 2.5", values)]


def test_an_axis_that_nothing_is_known_of_is_not_offered(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    rows = [{"step": s, "time": 1.0, "attempt": 1, "train/loss": s, "data/samples_mmu": s} for s in (1, 2)]
    assert "x-samples" not in [tag.get("id") for tag in report(one, two).all("input")]
    write_lines(two / "metrics.jsonl", rows)
    page = report(one, two)
    assert "x-samples" in [tag.get("id") for tag in page.all("input")]
    samples = re.findall(r'<svg [^>]*data-axis="samples".*?</svg>', page.html, re.DOTALL)[0]
    assert 'data-x="1 2"' in samples  # the other run's curve has no place there
    assert 'data-x=""' in samples


def test_noisy_curves_get_a_smoothed_line_that_does_not_lag(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [{"step": s, "time": 1.0, "attempt": 1, "train/loss": s, "train/lr": s} for s in range(1, 51)]
    write_lines(run / "metrics.jsonl", rows)
    page = report(run)
    paths = re.findall(r'<path class="(line(?: raw)?)" d="(.*?)"', page.html)
    [(raw, logged), (line, smoothed)] = paths[:2]
    assert (raw, line) == ("line raw", "line")
    assert smoothed == logged  # of a straight line, the mean over as many points before as after is the line itself
    assert "strong: mean over neighbouring points" in page.text
    rate = page.html[page.html.index("<code>train/lr</code>") :]
    assert [kind for kind, _ in re.findall(r'<path class="(line(?: raw)?)" d="(.*?)"', rate)][:1] == ["line"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "kept.csv"])
def test_a_kept_curve_is_drawn_beside_the_runs(tmp_path: Path, name: str) -> None:
    run, kept = make_run(tmp_path / "run"), tmp_path / name
    if name.endswith(".csv"):
        kept.write_text("step,key,value\n1,train/loss,0.75\n6,train/loss,0.5\n")
    else:
        rows = [{"step": s, "time": 1.0, "attempt": 1, "train/loss": value} for s, value in ((1, 0.75), (6, 0.5))]
        write_lines(kept, rows)
    assert call(verb, run, "--out", tmp_path / "report.html", "--reference", kept) == 0
    page = Page(tmp_path / "report.html")
    [drawn] = re.findall(r'data-axis="step">.*?<g class="of-ref">(.*?)</g>', page.html)
    assert 'data-x="1 6" data-y="0.75 0.5"' in drawn
    assert f"reference: {kept}" in page.text
    assert "0.75 → 0.5" in page.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "kept.csv does not exist"),
        ("step,value\n", "begins with 'step,value', expected step,key,value"),
        ("step,key,value\n1,train/loss\n", "line 2 of reference .*kept.csv has 2 cells, expected 3: step,key,value"),
        ("step,key,value\n-1,train/loss,1\n", "line 2 of .*: step is '-1', expected a whole number from 0 on"),
        ("step,key,value\n1,train/loss,low\n", "line 2 of .*: value is 'low', expected a number"),
        ('step,key,value\n1,train/loss,"1\n', "line 2 of .* is not CSV"),
        ("step,key,value\n", "kept.csv holds no values; name a metrics.jsonl, or a CSV file step,key,value"),
        ("step,key,value\n1,loss,1\n", "kept.csv holds loss, none of which the runs logged; name the keys as in"),
    ],
)
def test_a_reference_that_cannot_be_drawn_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    run, kept = make_run(tmp_path / "run"), tmp_path / "kept.csv"
    if content is not None:
        kept.write_text(content)
    assert call(verb, run, "--out", tmp_path / "report.html", "--reference", kept) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("value", [1e308, -1e308, 10**400, 5e-324, 1e-320, 0.0])
def test_no_number_is_too_odd_for_a_chart(tmp_path: Path, value: float) -> None:
    run = make_run(tmp_path / "run")
    logged = [1.0, value, 2.0]
    rows = [{"step": s, "time": 1.0, "attempt": 1, "train/loss": v} for s, v in enumerate(logged, start=1)]
    write_lines(run / "metrics.jsonl", rows)
    page = report(run)
    assert page.of_class("chart") == 1
    assert re.findall(r'd="[^"]*(?:nan|inf)', page.html) == []


def test_a_time_that_is_none_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_lines(run / "metrics.jsonl", [{"step": 1, "time": 1e200, "attempt": 1, "train/loss": 1.0}])
    assert "no time: 1e+200" in report(run).text


def test_a_run_that_stopped_in_order_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "COMPLETE").rename(run / "PREEMPTED")
    assert "not complete: step 6 of 6 logged, stopped on request" in report(run).text


def test_answers_of_a_measure_that_is_not_configured_are_shown_unmarked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    row = {"sample_id": "1", "question": "Is it?", "raw": "Yes", "gold": "yes"}
    write_lines(run / "records/step-000000006/pope/rank0.jsonl", [row])
    add_results(run, 6, {"pope": result({"f1_macro": 1.0})})
    page = report(run)
    assert "pope at step 6, 1 answers" in page.text
    assert page.of_class("right") == page.of_class("wrong") == 0
    assert "answers are not marked" in page.text  # this configuration does not load


def test_pictures_over_time_are_thinned_from_first_to_last(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for step in range(0, 190, 10):
        add_samples(run, step, ["a red circle", "a blue square"])
    page = report(run)
    pictures = [tag["title"] or "" for tag in page.all("img")]
    steps = sorted({int(title.rsplit(" ", 1)[1]) for title in pictures})
    assert len(pictures) == 16
    assert len(steps) == 8
    assert (steps[0], steps[-1]) == (0, 180)
    assert "Only 8 of 19 evaluated steps" in page.text


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_samples(run, 1, ["noise"])
    Image.effect_noise((1024, 1024), 100).save(run / "samples/step-000000001/000.png")
    page = report(run)
    [tag] = page.all("img")
    assert (tag["src"] or "").startswith("data:image/jpeg;base64,")
    assert len(tag["src"] or "") < 20_000


def test_a_run_that_still_goes_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "COMPLETE").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "att')
    page = report(run)
    assert "not complete: step 6 of 6 logged" in page.text
    assert "no evaluation yet" in page.text
    assert "damaged" not in page.text


def test_a_run_that_has_logged_nothing_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    page = report(run)
    assert "nothing is logged yet" in page.text
    assert page.all("svg") == []


def test_values_that_were_not_finite_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [{"step": s, "time": 1.0, "attempt": 1, "train/loss": v} for s, v in ((1, 2.0), (2, None), (3, None))]
    write_lines(run / "metrics.jsonl", rows)
    assert "train/loss was not a finite number at 2 of 3 logged steps" in report(run).text


def damage(run: Path) -> dict[str, str]:
    """Damages every file of a run that the report reads; returns what each note must say."""
    add_results(run, 1, {"pope": {"metrics": {"f1_macro": "high"}}, "gqa": result({"accuracy": 1.0})})
    write_lines(run / "records/step-000000001/gqa/rank0.jsonl", [{"no": "id"}])
    add_samples(run, 1, ["one", "two"])
    add_samples(run, 2, ["one", "two"])
    (run / "samples/step-000000001/000.png").write_bytes(b"no picture")
    (run / "samples/step-000000002/captions.json").write_text("[")
    (run / "records/step-000000002").mkdir()
    (run / "records/step-000000002/results.json").write_text("{")
    (run / "records/step-last").mkdir()
    write_json(run / "records/step-last/results.json", {"gqa": result({"accuracy": 1.0})})
    (run / "config.yaml").write_text("name: [")
    (run / "provenance.json").write_text("{}")
    (run / "bad_samples.jsonl").write_text("no\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('no\n{"step": "x", "attempt": 1}\n[]\n{"step": 9, "attempt": 1, "train/word": "x"}\n')
    return {
        "metrics": "3 damaged lines are left out (line 7, 8, 9)",
        "words": "not numbers, so not drawn: train/word",
        "config": "config.yaml is not valid YAML",
        "provenance": "provenance.json is damaged",
        "result": "results.json holds no result under pope",
        "results": "step-000000002/results.json is damaged",
        "record": "gqa/rank0.jsonl is damaged",
        "picture": "samples/step-000000001/000.png does not decode",
        "captions": "samples/step-000000002/captions.json is damaged",
        "folder": "step-last is left out: its name is not that of a step",
        "bad samples": "bad_samples.jsonl is damaged",
    }


def test_whatever_is_damaged_is_noted_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    notes = damage(run)
    page = report(run)
    missing = {name: note for name, note in notes.items() if note not in page.text}
    assert missing == {}
    assert "Traceback" not in page.html
    assert "gqa" in page.text
    assert page.of_class("chart") == 1
    assert "no picture" in page.text


@pytest.mark.parametrize("line", ["init_from: 5", "init_from: [[a], 7, null]", "pretrained: [1]", "init_from: {a: b}"])
def test_an_odd_configuration_is_shown_as_it_is(tmp_path: Path, line: str) -> None:
    run = make_run(tmp_path / "run")
    with (run / "config.yaml").open("a") as file:
        file.write(f"{line}\n")
    assert "starts from" in report(run).text


@pytest.mark.parametrize(
    "content", ['{"000": ' + "[" * 2000 + "]" * 2000 + "}", '{"a/b": "x"}', '{"000": 5}', "[1]", "\xff"]
)
def test_damaged_captions_are_noted(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path / "run")
    add_samples(run, 1, ["one"])
    (run / "samples/step-000000001/captions.json").write_bytes(content.encode("latin-1"))
    assert "captions.json is damaged" in report(run).text


def test_only_keys_beyond_the_defaults_are_listed(run_folder: Path) -> None:
    page = report(run_folder)
    cells = re.findall(
        r"<tr><td><code>([^<]*)</code></td><td class=\"quiet\">([^<]*)</td>\s*<td>([^<]*)</td>", page.html
    )
    rows = {key: (default, value) for key, default, value in cells}
    assert rows["model.d_model"][1] == "16"
    assert rows["evaluation.pope.max_new_tokens"] == ("16", "2")
    assert rows["data.mmu"][0] == ""
    assert [key for key in rows if key.startswith(("model.vision.", "optim.", "scenes."))] == [
        "model.vision.patch_size"
    ]
    assert "model.d_conv" not in rows
    assert "evaluation.pope.suffix" not in rows


def test_where_runs_differ_stands_first(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    (two / "config.yaml").write_text((one / "config.yaml").read_text().replace("0.25", "0.125").replace("one", "two"))
    page = report(one, two)
    part = page.html[
        page.html.index("Differences between the runs") : page.html.index("keys that are not at their default")
    ]
    assert re.findall(r"<code>(.*?)</code>", part) == ["optim.lr"]


def test_the_verb_writes_report_html_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert call(verb, "run") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("report: report.html (")
    assert Page(tmp_path / "report.html").all("svg")


def test_the_verb_ends_with_a_message_where_there_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(verb, "gone") == 2
    assert capsys.readouterr().err.startswith(
        "error: gone is not a run folder: it has neither config.yaml nor metrics.jsonl. Name one"
    )


def test_what_is_no_run_is_left_out_of_several_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "one")
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "report.html").write_text("")
    found = sorted(path.relative_to(tmp_path) for path in (tmp_path / "runs").iterdir())
    assert call(verb, *found) == 0
    said = capsys.readouterr()
    assert said.err == "WARNING: left out, because they are no run: runs/notes, runs/report.html\n"
    assert "report: report.html" in said.out
    assert call(verb, "runs/one", "runs/oen") == 2  # a pattern yields no such name: it is misspelt
    assert "runs/oen is not a run folder" in capsys.readouterr().err
    assert call(verb, "runs/notes", "runs/report.html") == 2
    assert "runs/notes is not a run folder" in capsys.readouterr().err


def test_the_pieces_of_a_report_are_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    runs = [make_run(tmp_path / name) for name in ("one", "two")]
    write_report(runs, tmp_path / "report.html", progress=lambda *piece: told.append(piece))
    assert told[:2] == [("read runs", 0, 2), ("read runs", 1, 2)]
    charts = len(read_runs(runs)[0].log.curves)
    assert told[2:] == [("draw charts", number, charts) for number in range(charts)]


def test_a_run_named_twice_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"a run is named twice: .*/run .*/out/\.\./run; name each once"):
        write_report([run, tmp_path / "out" / ".." / "run"], tmp_path / "report.html")


def test_only_a_report_is_written_over(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    config = (run / "config.yaml").read_bytes()
    with pytest.raises(FileExistsError, match=r"config\.yaml is there and is no report; name another file, or remove"):
        write_report([run], run / "config.yaml")
    assert (run / "config.yaml").read_bytes() == config
    with pytest.raises(FileExistsError, match=r"run is a folder; name a file in it, such as .*/run/report\.html"):
        write_report([run], run)
    for _ in range(2):
        write_report([run], tmp_path / "report.html")
