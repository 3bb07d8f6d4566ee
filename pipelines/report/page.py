"""Renders the report as one HTML page that needs no network, and whose script only shows values under the pointer."""

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from datamodules.images import ImageSource
from modules.files import write_file
from modules.metrics.paper import OURS
from modules.unheard import unheard
from pipelines.report.charts import REFERENCE
from pipelines.report.curves import AXES, Axis, read_reference, refuse_foreign
from pipelines.report.panels import EVALUATION, Block, Reference, sections
from pipelines.report.read import Progress, Run, read_runs
from pipelines.report.samples import data_uri, read_answers, read_sheet
from pipelines.report.scores import scoreboard
from pipelines.report.tables import attempt_facts, attempt_rows, config_rows, moment, paper_parts, result_rows, summary

HERE = Path(__file__).parent
MARK = '<meta name="generator" content="pipelines.report">'
"""In every page, near its beginning."""
COLOURS = 8
"""Number of colours in report.css; further runs reuse them with other dashes."""


def write_report(
    paths: Sequence[Path], out: Path, reference: Path | None = None, *, progress: Progress = unheard
) -> Path:
    """Write the report of the run folders ``paths`` to ``out``; ``reference`` is a kept curve to draw under theirs.

    ``progress`` is called with each piece of the work that begins.

    Raises:
        FileNotFoundError: there is no ``reference``.
        ValueError: one of ``paths`` is not a run folder, or is named twice; or ``reference`` has no curve of theirs.
        FileExistsError: ``out`` is another file than a report.
    """
    _refuse_another_file(out)
    runs, kept = read_runs(list(paths), progress), None
    if reference is not None:
        kept = Reference(path=reference, log=read_reference(reference))
        refuse_foreign(kept.log, (name for run in runs for name in run.log.curves), reference)
    page = render(runs, kept, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, page)
    return out


def _refuse_another_file(out: Path) -> None:
    """Only a page of ours is replaced, so that a wrong word loses no file."""
    if out.is_dir():
        raise FileExistsError(f"--out {out} is a folder; name a file in it, such as {out / 'report.html'}")
    if out.exists() and MARK.encode() not in out.read_bytes()[:2000]:
        raise FileExistsError(f"--out {out} is there and is no report; name another file, or remove it")


def render(runs: Sequence[Run], reference: Reference | None = None, progress: Progress = unheard) -> str:
    """The page; everything that comes from a run or a reference is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_own("report.html"))
    summaries = [summary(run) for run in runs]
    packages = [attempt_facts(run.attempts[-1]) if run.attempts else {} for run in runs]
    parts: dict[str, Any] = {
        "summaries": summaries,
        "facts": list(dict.fromkeys(key for cells in summaries for key in cells)),
        "scores": scoreboard(runs),
        "sections": sections(runs, reference, progress),
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
    script = _own("report.js")
    # rendered last, because reading the parts above adds notes
    return template.render(
        parts=parts,
        runs=runs,
        colours=[index % COLOURS for index in range(len(runs))],
        reference=reference,
        REFERENCE=REFERENCE,
        EVALUATION=EVALUATION,
        axes=_axes(parts["sections"]),
        has_evaluation=bool(parts["results"] or EVALUATION in parts["sections"]),
        style=Markup(_own("report.css")),
        script=Markup(script),
        policy=_policy(script),
        written=moment(time.time()),
        ours=OURS,
        uri=_uri,
    )


def _axes(found: Mapping[str, Sequence[Block]]) -> list[Axis]:
    """The axes that are known in some chart."""
    panels = [panel for blocks in found.values() for block in blocks for panel in [*block.panels, *block.details]]
    return [axis for axis in AXES if any(panel.charts.get(axis) for panel in panels)]


def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """What a browser lets the page do: run ``script`` and no other, show pictures in it, and load nothing."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


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
