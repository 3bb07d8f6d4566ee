import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from callbacks.measures.measure import Result
from pipelines import evaluate
from pipelines.run.output import show_table
from tests.verbs import call


def results(run: Path) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = json.loads(
        (run / "records/step-000000020/results.json").read_text()
    )
    return found


def test_all_configured_measures_and_then_scoring_alone(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(evaluate, run_folder) == 0
    first = results(run_folder)
    assert set(first) == {"pope_style", "gqa_style", "fd_pool", "samples"}
    assert set(first["fd_pool"]["metrics"]) == {"fd_2", "rfd_2", "kd_2", "kd_2/std"}
    assert (run_folder / "samples/step-000000020/000.png").is_file()
    shown = capsys.readouterr().out
    for word in ("pope_style", "f1_macro", "± std err", "trivial", "paper", "results.json"):
        assert word in shown
    assert "random/f1" not in shown

    records = sorted(run_folder.glob("records/*/*/rank0.jsonl"))
    written = [path.stat().st_mtime_ns for path in records]
    (run_folder / "records/step-000000020/results.json").unlink()
    assert call(evaluate, run_folder, "--score-only", "--details", "--measures", "pope", "gqa", "fid", "samples") == 0
    assert results(run_folder) == first
    assert [path.stat().st_mtime_ns for path in records] == written
    assert "random/f1" in capsys.readouterr().out


def test_the_configuration_of_a_run_means_the_run_and_its_samples_are_counted(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(evaluate, run_folder / "config.yaml", "--measures", "pope,gqa", "evaluation.batch_size=1") == 0
    assert set(results(run_folder)) == {"pope_style", "gqa_style"}
    lines = capsys.readouterr().out.splitlines()
    [counted] = [line for line in lines if line.startswith("pope_style  ")]
    assert re.fullmatch(r"pope_style  6/6  [\d.]+ samples/s  scoring", counted)
    assert call(evaluate, run_folder / "config.yaml", "--measures", "gqa,", "evaluation.batch_size=1") == 0
    assert "gqa_style: continuing after 2 of 2" in capsys.readouterr().out  # nothing was left to do


def test_a_benchmark_named_on_the_command_line(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "MME" / "count"
    folder.mkdir(parents=True)
    Image.new("RGB", (20, 16), "red").save(folder / "1.png")
    (folder / "1.txt").write_text("Is there one?  Please answer yes or no.\tYes\nAre there two?\tNo\n")
    mme = f"evaluation.mme={{source: {folder.parent}, data: scenes, max_new_tokens: 2}}"
    assert call(evaluate, run_folder, "--measures", "mme", mme) == 0
    [(name, result)] = results(run_folder).items()
    assert (name, result["baselines"]["count/score"], result["protocol"]["n"]) == ("mme_style", 50, 2)
    assert "n_other" in capsys.readouterr().out


def test_overrides_and_records_of_another_protocol(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(evaluate, run_folder, "--measures", "gqa") == 0
    assert set(results(run_folder)) == {"gqa_style"}
    override = "evaluation.gqa.limit=3"
    assert call(evaluate, run_folder, "--measures", "gqa", override) == 2
    assert "limit: 2 there, 3 now" in capsys.readouterr().err
    assert call(evaluate, run_folder, override, "--fresh", "--measures", "gqa") == 0
    assert results(run_folder)["gqa_style"]["protocol"]["n"] == 3


def test_errors_are_messages_and_exit_code_2(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        ([run_folder / "nowhere"], "nowhere does not exist. Name one that pipelines.train made"),
        ([run_folder / "records"], "records does not exist"),
        ([run_folder / "checkpoints"], "is not a run folder: it has no config.yaml"),
        ([run_folder, "--measures", "pope,vqa"], "unknown measure 'vqa'"),
        (
            [run_folder, "--measures", "vqa"],
            "unknown measure 'vqa'; known are val, pope, gqa, vqav2, mme, mmmu, content, fid, ",
        ),
        (
            [run_folder, "--measures", "fid", "evaluation.fid=null"],
            "measure fid is not configured in this run (it has pope, gqa, samples)",
        ),
        (
            [run_folder, *(f"evaluation.{t}=null" for t in ("pope", "gqa", "fid", "samples"))],
            "no evaluation configured",
        ),
        ([run_folder, "evaluation.batch_size=0"], "evaluation.batch_size=0 must be at least 1"),
        ([run_folder, "--score-only", "--measures", "pope"], "holds 0 records for 6 samples of pope_style"),
        ([run_folder, "--score-only", "--fresh"], "not allowed with argument"),
        ([run_folder, "--taks", "pope"], "unrecognized argument: --taks"),
        ([run_folder, "--measures", "fid", "model.vq=''"], "model.vq is empty"),
    ):
        assert call(evaluate, *words) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_a_run_without_a_checkpoint(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "checkpoints/step-000000020").rename(run_folder / "kept")
    assert call(evaluate, run_folder) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_two_processes_evaluate_as_one(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(evaluate, run_folder, "--measures", "pope", "gqa", "fid") == 0
    alone = results(run_folder)
    words = ["--standalone", "--nproc-per-node", "2", "-m", "pipelines.evaluate", str(run_folder), "--fresh"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, "--measures", "pope", "gqa", "fid"],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("f1_macro") == 1  # one process speaks for all
    assert done.stdout.count("pope_style (rank 0 of 2)  3/3  ") == 1
    together = results(run_folder)
    assert together.keys() == alone.keys()
    for name, result in together.items():
        assert result["metrics"] == pytest.approx(alone[name]["metrics"], rel=1e-6)
        assert len(list(run_folder.glob(f"records/*/{name}/rank*.jsonl"))) == 2


def test_the_small_evaluation_has_a_name_of_its_own(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(evaluate, run_folder, "--mini", "--measures", "gqa", "evaluation.mini=2") == 0
    assert set(results(run_folder)) == {"gqa_style_mini"}
    assert call(evaluate, run_folder, "--mini", "--measures", "gqa") == 2
    assert "--mini needs evaluation.mini=N" in capsys.readouterr().err


def test_the_n_beside_a_number_is_its_own_and_no_name_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "val_question_type/" + "what_color_is_the_thing_beside_the_other_" * 3
    counts = {"val_overall": 10, long: 3}
    metrics = {"val_overall": 0.5, long: 0.25, "n_other": 1.0}
    result = Result(metrics=metrics, standard_errors={}, baselines={}, protocol={"n": 12}, counts=counts)
    show_table(evaluate.result_table({"vqav2_test-dev2015_style_mini": result}, title="a run", details=True))
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [(row[1].strip(), row[2].strip(), row[-2].strip()) for row in lines] == [
        ("vqav2_test-dev2015_style_mini", name, n) for name, n in zip(metrics, ("10", "3", "12"), strict=True)
    ]


@pytest.mark.parametrize(("name", "shown"), [("pope", "0.8630"), ("pope_mini", "-"), ("pope_style", "-")])
def test_only_an_official_measure_has_the_papers_value_beside_it(name: str, shown: str) -> None:
    result = Result(metrics={"f1_macro": 0.5}, standard_errors={}, baselines={}, protocol={"n": 9000})
    table = evaluate.result_table({name: result}, title="")
    column = next(column for column in table.columns if column.header == "paper")
    assert list(column.cells) == [shown]


def test_results_outlive_a_full_standard_output(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert call(evaluate, run_folder, "--measures", "samples") == 0
    [results] = run_folder.glob("records/*/results.json")
    assert "samples" in json.loads(results.read_text())
    assert "standard output can no longer be written" in capfd.readouterr().err
