"""What the demo makes of results: the table, and whether anything was learnt."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.demo import failures_of, table_of


def write(run: Path, step: int, results: dict[str, Any]) -> Path:
    folder = run / "records" / f"step-{step:09d}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    return run


def scored(value: float, trivial: float) -> dict[str, Any]:
    names = ("acc_macro", "accuracy", "open", "binary")
    return {
        "metrics": dict.fromkeys(names, value),
        "standard_errors": dict.fromkeys(names, 0.01),
        "baselines": dict.fromkeys(names, trivial),
    }


def drawn(distance: float, content: float = 0.85) -> dict[str, Any]:
    names = ("content", "color", "shape", "place")
    return {
        "fd_pool": {"metrics": {"fd_8": distance, "rfd_8": 0.125}, "baselines": {"fd_8": 7.0}, "standard_errors": {}},
        "content_scenes": {
            "metrics": dict.fromkeys(names, content) | {f"reconstructed/{name}": 0.99 for name in names},
            "baselines": dict.fromkeys(names, 0.0625),
            "standard_errors": dict.fromkeys(names, 0.03),
        },
    }


def runs(tmp_path: Path, answers: float, distance: float, content: float = 0.85) -> list[Path]:
    mmu = write(tmp_path / "mmu", 0, {name: scored(0.25, 0.5) for name in ("pope_style", "gqa_style")})
    t2i = write(tmp_path / "t2i", 0, drawn(6.0, 0.125))
    write(t2i, 5, drawn(4.0))
    after = {name: scored(answers, 0.5) for name in ("pope_style", "gqa_style")}
    return [mmu, t2i, write(tmp_path / "unified", 9, after | drawn(distance, content))]


def test_the_table_shows_before_after_and_baselines(tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table_of(*runs(tmp_path, 0.75, 1.5)))
    text = console.export_text()
    assert text.count("0.250") == 4
    assert text.count("0.750") == 4
    for part in (
        "6.000",
        "1.500",
        "its colour",
        "0.125",
        "0.850",
        "0.062 (shuffled captions); 0.990 at best",
        "7.000 (random codes); 0.125 at best",
        "0.500 (always yes)",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("answers", "distance", "content", "failures"),
    [(0.54, 2.9, 0.5, 0), (0.52, 2.9, 0.5, 4), (0.54, 3.1, 0.5, 1), (0.54, 2.9, 0.49, 1), (0.4, 6.0, 0.1, 6)],
)
def test_learning_is_three_standard_errors_half_the_distance_and_half_the_captions(
    tmp_path: Path, answers: float, distance: float, content: float, failures: int
) -> None:
    _, t2i, unified = runs(tmp_path, answers, distance, content)
    assert len(failures_of(t2i, unified)) == failures
