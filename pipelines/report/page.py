"""Renders the report as one HTML page that needs neither network nor scripts."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from datamodules.images import ImageSource
from modules.files import write_file
from modules.metrics.paper import OURS
from pipelines.report.charts import Line, colour, draw
from pipelines.report.read import Progress, Run, read_runs, unheard
from pipelines.report.samples import data_uri, read_answers, read_sheet
from pipelines.report.tables import (
    attempt_facts,
    attempt_rows,
    config_rows,
    moment,
    number,
    paper_parts,
    result_rows,
    summary,
)

TEMPLATE = Path(__file__).with_name("report.html")
MARK = '<meta name="generator" content="pipelines.report">'
"""In every page, near its beginning."""

GROUPS = (
    ("Losses", r"train/loss"),
    ("Measures", r"eval(_mini)?/"),
    ("Speed and memory", r".*(_per_s|mfu|util|mem|wait|seconds|_s$)"),
    ("Optimisation", r"train/|optim/"),
    ("Data", r"data/"),
    ("Other", r""),
)
"""Headings, each with the pattern of its metrics; the first match wins."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart with its texts."""

    name: str
    svg: Markup
    remarks: str
    values: list[tuple[int, str]]
    """Index of the run, and the first and last value of its curve."""
    is_detail: bool


def write_report(paths: Sequence[Path], out: Path, progress: Progress = unheard) -> Path:
    """Write the report of the run folders ``paths`` to ``out``; ``progress`` is called with each piece that begins.

    Raises:
        ValueError: one of them is not a run folder, or is named twice.
        FileExistsError: ``out`` is another file than a report.
    """
    _refuse_another_file(out)
    page = render(read_runs(list(paths), progress), progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, page)
    return out


def _refuse_another_file(out: Path) -> None:
    """Only a page of ours is replaced, so that a wrong word loses no file."""
    if out.is_dir():
        raise FileExistsError(f"--out {out} is a folder; name a file in it, such as {out / 'report.html'}")
    if out.exists() and MARK.encode() not in out.read_bytes()[:2000]:
        raise FileExistsError(f"--out {out} is there and is no report; name another file, or remove it")


def render(runs: Sequence[Run], progress: Progress = unheard) -> str:
    """The page; everything that comes from a run is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    summaries = [summary(run) for run in runs]
    packages = [attempt_facts(run.attempts[-1]) if run.attempts else {} for run in runs]
    parts = {
        "summaries": summaries,
        "facts": list(dict.fromkeys(key for cells in summaries for key in cells)),
        "groups": panels(runs, progress),
        "results": result_rows(runs),
        "papers": paper_parts(runs),
        "sheets": [read_sheet(run) for run in runs],
        "posters": [_poster(run) for run in runs],
        "answers": [read_answers(run, run.last_results()) for run in runs],
        "config": config_rows(runs),
        "attempts": [attempt_rows(run) for run in runs],
        "packages": packages,
        "package_keys": list(dict.fromkeys(key for facts in packages for key in facts)),
    }
    # rendered last, because reading the parts above adds notes
    return template.render(
        parts=parts,
        runs=runs,
        colours=[colour(index) for index in range(len(runs))],
        written=moment(time.time()),
        ours=OURS,
        uri=_uri,
    )


def panels(runs: Sequence[Run], progress: Progress = unheard) -> dict[str, list[Panel]]:
    """All metrics of all runs as charts, by heading."""
    names = sorted({name for run in runs for name in run.curves}, key=lambda name: ("/" in name[5:], name))
    groups: dict[str, list[Panel]] = {heading: [] for heading, _ in GROUPS}
    for done, name in enumerate(names):
        progress("draw charts", done, len(names))
        heading = next(heading for heading, pattern in GROUPS if re.match(pattern, name))
        groups[heading].append(_panel(name, runs))
    return {heading: found for heading, found in groups.items() if found}


def _panel(name: str, runs: Sequence[Run]) -> Panel:
    lines, values = [], []
    for index, run in enumerate(runs):
        if (curve := run.curves.get(name)) is None:
            continue
        errors, baseline = _known(run, name)
        lines.append(Line(index=index, curve=curve, restarts=run.restarts(), errors=errors, baseline=baseline))
        first, last = number(curve.values[0]), number(curve.values[-1])
        values.append((index, first if len(curve.values) == 1 else f"{first} → {last}"))
    may_be_log = name.startswith(("train/loss", "eval")) or "norm" in name
    chart = draw(lines, salt=name, may_be_log=may_be_log)
    # eval/<measure>/<metric>, eval_mini/<measure>/<metric>: a slash in the metric marks a detail
    is_detail = name.startswith("eval") and name.count("/") > 2
    return Panel(
        name=name,
        svg=Markup(chart.svg),  # made by matplotlib from numbers only
        remarks="; ".join(chart.remarks),
        values=values,
        is_detail=is_detail,
    )


def _known(run: Run, name: str) -> tuple[dict[int, float], float | None]:
    """Standard errors by step and the trivial baseline of a measure's metric."""
    prefix, measure, metric = [*name.split("/", 2), "", ""][:3]
    measure += "_mini" if prefix == "eval_mini" else ""
    results = {step: found[measure] for step, found in run.results.items() if measure in found}
    if not prefix.startswith("eval") or not results:
        return {}, None
    errors = {step: result["standard_errors"].get(metric) for step, result in results.items()}
    baseline = results[max(results)]["baselines"].get(metric)
    return {step: error for step, error in errors.items() if error}, baseline


def _poster(run: Run) -> str | None:
    """The demo's sheet of real, reconstructed and generated pictures, if the run has one."""
    path = run.path / "sheet.png"
    return run.noted(data_uri, path, side=1100) if path.is_file() else None


def _uri(picture: ImageSource | None) -> str | None:
    """The picture of an answer; None if it cannot be read. The report does not check the benchmark's files."""
    try:
        return data_uri(picture) if picture else None
    except (ValueError, OSError):
        return None
