"""A sweep without a server: what it starts, what it remembers, and what it says. A function stands in for training."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.run.overrides import ConfigError
from pipelines.sweep import runner
from pipelines.sweep.__main__ import main as sweep
from pipelines.sweep.file import Sweep
from pipelines.sweep.trials import TRIALS, SweepFolder, Trial, best

SWEEP = """
method: {method}
metric: {{name: train/loss, goal: {goal}}}
parameters: {{optim.lr: {{values: [0.5, 0.25, 0.125]}}}}
command: ["${{interpreter}}", -m, pipelines.train, a.yaml, "${{args_no_hyphens}}"]
"""
RATES = [0.5, 0.25, 0.125]
Main = Callable[..., list[list[str]]]


def lr_of(words: Sequence[str]) -> float:
    return float(next(word for word in words if word.startswith("optim.lr=")).split("=")[1])


def run_of(words: Sequence[str]) -> Path:
    return Path(words[-1].removeprefix("run.dir="))


def finish(words: Sequence[str], value: float | None = None, key: str = "train/loss") -> int:
    """Leave what a run leaves: a loss of twice its learning rate."""
    run = run_of(words)
    run.mkdir(exist_ok=True)
    loss = value if value is not None else 2 * lr_of(words)
    rows = [
        {"step": 1, "attempt": 1, key: 9.0},
        {"step": 2, "attempt": 1, key: loss},
        {"step": 2, "attempt": 1, "x": 1},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "COMPLETE").write_text("2\n")
    return 0


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Main:
    """Runs the verb on a grid of three learning rates; returns the words of each training that it started."""

    def suggest(sweep: Sweep, trial: int, history: Any, seed: int) -> dict[str, Any] | None:
        return {"optim.lr": RATES[trial]} if trial < len(RATES) else None

    monkeypatch.setattr(Sweep, "suggest", suggest)

    def run(
        *more: str, train: Callable[[list[str]], int] = finish, method: str = "grid", goal: str = "minimize"
    ) -> list[list[str]]:
        started: list[list[str]] = []

        def trains(words: list[str], log: Path, claim: int) -> int:
            started.append(words)
            with log.open("a") as file:
                file.write("hello\n")
            return train(words)

        monkeypatch.setattr(runner, "train", trains)
        (tmp_path / "s.yaml").write_text(SWEEP.format(method=method, goal=goal))
        monkeypatch.setattr(sys, "argv", ["sweep", str(tmp_path / "s.yaml"), "--folder", str(tmp_path / "mine"), *more])
        sweep()
        return started

    return run


def test_a_grid_runs_to_its_end_and_names_its_best(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = main("seed=7")
    folder = tmp_path / "mine"
    assert started[0] == [
        "a.yaml", "optim.lr=0.5", "name=mine-trial-000", "tracking.group=mine", "seed=7", f"run.dir={folder}/trial-000",
    ]  # fmt: skip
    assert [lr_of(words) for words in started] == RATES
    trials = SweepFolder(folder).trials()
    assert [(trial.state, trial.value) for trial in trials] == [("finished", 2 * lr) for lr in RATES]
    said = capsys.readouterr().out
    assert f"best: trial-002, train/loss 0.25: optim.lr=0.125\nits run folder is {folder}/trial-002" in said
    assert [line.split()[1] for line in said.splitlines() if line.startswith("│ trial-")] == [
        f"trial-00{i}" for i in range(3)
    ]


def test_where_more_is_better_the_highest_is_best(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("--trials", "2", goal="maximize")
    assert "best: trial-000, train/loss 1:" in capsys.readouterr().out


def test_what_is_finished_is_not_repeated_and_more_can_be_asked_for(main: Main) -> None:
    assert len(main("--trials", "2")) == 2
    assert main("--trials", "2") == []
    assert [lr_of(words) for words in main("--trials", "3")] == [0.125]


def test_a_trial_that_was_stopped_goes_on_and_nothing_else_is_started(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(train=lambda words: 75 if lr_of(words) == 0.25 else finish(words))
    assert stop.value.code == 75
    assert "trial-001 was stopped; start the same command again to go on from there" in capsys.readouterr().err
    assert [trial.state for trial in SweepFolder(tmp_path / "mine").trials()] == ["finished", "started"]
    assert [lr_of(words) for words in main()] == [0.25, 0.125]


def test_a_killed_sweep_may_leave_half_a_line(main: Main, tmp_path: Path) -> None:
    main("--trials", "1")
    state = tmp_path / "mine" / TRIALS
    whole = state.read_text()
    state.write_text(whole + '{"number": 1, "parame')
    assert [lr_of(words) for words in main("--trials", "2")] == [0.25]
    assert state.read_text().startswith(whole + '{"number": 1, "parameters": {"optim.lr": 0.25}, "state": "started"')


def test_a_trial_trained_by_somebody_else_is_only_read(main: Main, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    finish(["optim.lr=0.5", f"run.dir={tmp_path}/mine/trial-000"])
    assert [lr_of(words) for words in main()] == [0.25, 0.125]
    assert [trial.value for trial in SweepFolder(tmp_path / "mine").trials()] == [1.0, 0.5, 0.25]


def test_a_failed_trial_is_recorded_and_the_sweep_goes_on(main: Main, tmp_path: Path) -> None:
    assert len(main(train=lambda words: 1 if lr_of(words) == 0.5 else finish(words))) == 3
    trials = SweepFolder(tmp_path / "mine").trials()
    assert [trial.state for trial in trials] == ["failed", "finished", "finished"]
    assert trials[0].reason == "hello (exit code 1)"
    assert main() == []
    assert [lr_of(words) for words in main("--retry")] == [0.5]


def test_too_many_failures_end_the_sweep(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main("--max-failures", "2", train=lambda words: 1 if lr_of(words) < 0.5 else finish(words))
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "best: trial-000" in said
    assert "stopped after 2 failed trials (--max-failures); --retry starts them again" in said


def test_a_sweep_of_failures_has_no_best(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main("--trials", "1", train=lambda words: -9)
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert "no trial has finished" in said.out
    assert "trial-000 failed: killed by SIGKILL" in said.err


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (lambda words: finish(words, key="train/lr"), "train/loss is not in its metrics.jsonl, which has train/lr"),
        (lambda words: finish(words, key="x"), "train/loss is not in its metrics.jsonl, which has nothing"),
        (lambda _: 0, "hello (exit code 0)"),
    ],
)
def test_a_trial_without_the_metric_has_failed(
    main: Main, tmp_path: Path, train: Callable[[list[str]], int], reason: str
) -> None:
    with pytest.raises(SystemExit):
        main("--trials", "1", train=train)
    assert [trial.reason for trial in SweepFolder(tmp_path / "mine").trials()] == [reason]


def test_a_loss_that_is_not_finite_is_no_result(tmp_path: Path) -> None:
    folder, trial = SweepFolder(tmp_path), Trial(number=0, parameters={})
    folder.run(trial).mkdir()
    (folder.run(trial) / "metrics.jsonl").write_text('{"step": 1, "attempt": 1, "train/loss": null}\n')
    with pytest.raises(LookupError, match="the last value of train/loss is not a finite number"):
        folder.value(trial, "train/loss")


def test_of_equal_trials_the_first_is_best() -> None:
    trials = [Trial(number=n, parameters={}, state="finished", value=v) for n, v in enumerate([2.0, 1.0, 1.0])]
    assert best(trials, maximize=False) == trials[1]
    assert best(trials, maximize=True) == trials[0]
    assert best([Trial(number=0, parameters={}, state="failed")], maximize=True) is None


def test_an_error_is_told_whole_and_only_of_this_start() -> None:
    said = "seed 1\nerror: a.yaml:\n  - lr=-1 must be\n    above 0\n"
    assert runner.last_words(said, 2) == "a.yaml: - lr=-1 must be above 0 (exit code 2)"
    assert runner.last_words("", 1) == "ended without output (exit code 1)"
    assert runner.last_words("", -15) == "killed by SIGTERM"


def test_one_folder_is_one_sweep(main: Main, tmp_path: Path) -> None:
    main("--trials", "1")
    for words in (["seed=1"], ["--seed", "1"]):
        with pytest.raises(ConfigError, match=r"mine holds another sweep:\n  .* now\nChoose another --folder"):
            main("--trials", "1", *words)
    with pytest.raises(ConfigError, match=r"holds another sweep:\n  sweep: .*grid.* there, .*random.* now"):
        main("--trials", "1", method="random")


def test_two_sweeps_never_share_a_folder_and_a_trial_holds_it_too(main: Main, tmp_path: Path) -> None:
    main("--trials", "1")
    folder = SweepFolder(tmp_path / "mine")
    with folder.claimed() as claim:
        with pytest.raises(ConfigError, match=r"another process runs the sweep in .*mine, or its last trial is still"):
            main()
        orphan = subprocess.Popen(["sleep", "60"], pass_fds=[claim])
    try:
        with pytest.raises(ConfigError, match="another process runs the sweep"):
            main()
    finally:
        orphan.kill()
        orphan.wait()
    assert len(main()) == 2


def test_a_proposal_is_words_and_nothing_else(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--propose", "1", "seed=3") == []
    assert capsys.readouterr().out.splitlines() == [
        "a.yaml", "optim.lr=0.25", "name=mine-trial-001", "tracking.group=mine", "seed=3",
        f"run.dir={tmp_path}/mine/trial-001",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="the grid has no trial 3; trials count from 0"):
        main("--propose", "3", "seed=3")
    with pytest.raises(ConfigError, match="method=bayes learns from earlier trials, so none can be proposed"):
        main("--propose", "0", method="bayes")


def test_words_that_are_run_are_not_redacted(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    word = 'evaluation.samples.prompts=["a password: none"]'
    main("--propose", "0", word)
    assert capsys.readouterr().out.splitlines()[-2:] == [word, f"run.dir={tmp_path}/mine/trial-000"]


@pytest.mark.parametrize("propose", [("--propose", "0"), ()])
@pytest.mark.parametrize(
    ("variable", "value", "more", "keys"),
    [
        (
            "TEAM_KEY",
            "projectx",
            "seed=1",
            r"s\.yaml, trial-000: name holds a secret; tracking.group holds a secret; run.dir holds a secret",
        ),
        ("OTHER", "x", f"tracking.project=glpat-{'a1B-' * 5}", "the command line: tracking.project holds a secret"),
        (
            "SESSION_JWT",
            "correct-horse",
            "tracking.tags=[a,correct-horse]",
            "the command line: tracking.tags holds a secret",
        ),
    ],
)
def test_a_word_that_holds_a_secret_is_refused_before_anything_is_written(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, propose: list[str],
    variable: str, value: str, more: str, keys: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    folder = tmp_path / "projectx"
    with pytest.raises(ConfigError, match=rf"{keys}\. .*leave secrets out of it"):
        main(*propose, "--folder", str(folder), more)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("words", "method", "message"),
    [
        (["run.dir=x"], "grid", "run.dir=x: every trial has its own run folder; --folder says where they are"),
        (["x"], "grid", "override 'x' is not of the form key=value"),
        ([], "random", "method=random has no end; set the number of trials with --trials N"),
        (["--trials", "0"], "grid", "--trials 0 must be at least 1"),
    ],
)
def test_command_lines_that_mean_nothing_are_refused(main: Main, words: list[str], method: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(*words, method=method)


def test_a_trial_of_ours_is_no_trial_of_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it hears what the sweep is told: the stand-in for Python waits for SIGTERM and answers with 75."""
    program, log = tmp_path / "python", tmp_path / "log"
    program.write_text(
        "#!/bin/bash\ntrap 'exit 75' TERM\n"
        'echo "$* ${WANDB_SWEEP_ID-none} ${WANDB_RUN_ID-none} $WANDB_MODE"\nkill -TERM $PPID\n'
        "for i in $(seq 600); do sleep 0.1; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.setenv(name, "outer")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with (tmp_path / "claim").open("w") as claim:
        assert runner.train(["a.yaml"], log, claim.fileno()) == 75
    assert log.read_text() == "-u -m pipelines.train a.yaml none none offline\n"
    assert os.environ["WANDB_RUN_ID"] == "outer"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{}", r"\[0\].number is missing"),
        ('{"number": "0", "parameters": {}}', r"\[0\].number is '0', expected a whole number"),
        ('{"number": -1, "parameters": {}}', "expected at least 0"),
        ('{"number": 0, "parameters": [1]}', r"parameters is \[1\], expected an object"),
        ('{"number": 0, "parameters": {}, "state": "lost"}', "state is 'lost'"),
    ],
)
def test_a_damaged_line_of_trials_is_named(tmp_path: Path, line: str, why: str) -> None:
    (tmp_path / "trials.jsonl").write_text(f'{{"sweep": {{}}}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"the trials in .*trials\.jsonl: .*{why}"):
        SweepFolder(tmp_path).trials()
