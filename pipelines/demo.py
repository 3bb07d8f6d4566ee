"""Run the whole pipeline on embedded data: prepare, train all three stages, evaluate, and report what was learnt.

    python -m pipelines.demo [key=value ...]          (make demo)

Examples:
    python -m pipelines.demo
    python -m pipelines.demo hardware.threads=2 tracking.wandb=disabled

The overrides apply to all three runs: runs/demo_mmu, runs/demo_t2i and runs/demo_unified. Complete runs are not
trained again; delete their folders to start over. Ends with exit code 1 if the model did not learn.
"""

import argparse
import os
import shlex
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.run_files import RECORDS
from pipelines.run.console import run_verb, say
from pipelines.run.output import show_table

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = ("demo_t2i", "demo_mmu", "demo_unified")
SHEET_CAPTIONS = 8
MEASURES = (
    ("pope_style", "acc_macro", "presence, POPE style: accuracy", "always yes"),
    ("gqa_style", "accuracy", "all questions, GQA style: accuracy", "most frequent answer"),
    ("gqa_style", "open", "colours and shapes (open): accuracy", "most frequent answer"),
    ("gqa_style", "binary", "presence again (binary): accuracy", "most frequent answer"),
)
CONTENT = (
    ("content", "captions whose object is drawn"),
    ("color", "its colour"),
    ("shape", "its shape"),
    ("place", "its place, where named"),
)
LEAST_CONTENT = 0.5
"""Far below what three seeds reached (docs/experiments.md), and far above what shuffled captions reach."""


def main() -> None:
    """Parse the command line and run the demo."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides for all three runs")
    arguments = parser.parse_args()
    # imported here to keep --help fast; and this first, so that a wrong word is told before torch is loaded
    from pipelines.run.overrides import refuse_unknown_words

    refuse_unknown_words(arguments.overrides)
    from callbacks.tracking import read_metrics
    from pipelines.report.page import write_report
    from pipelines.run.config import load
    from pipelines.run.fit import fit

    started = time.monotonic()
    runs = [fit(load(CONFIGS / f"{name}.yaml", arguments.overrides)) for name in STAGES]
    t2i, mmu, unified = runs
    say()
    for run in runs:
        losses = {key for row in read_metrics(run) for key in row if key.startswith("train/loss_")}
        for key in sorted(losses):
            values = [row[key] for row in read_metrics(run) if key in row]
            say(f"{run.name}: {key} {values[0]:.2f} -> {values[-1]:.2f}")
    show_table(table_of(mmu, t2i, unified))
    sheet = unified / "sheet.png"
    _sheet(unified).save(sheet)
    say(f"picture sheet: {sheet} (rows: real, through the VQ tokenizer, generated from the caption)")
    say(f"report of all three runs: {write_report(runs, unified.parent / 'report.html')} (open it in any browser)")
    python, folder = shlex.quote(os.path.relpath(sys.executable)), shlex.quote(str(unified))
    say(f"demo done in {time.monotonic() - started:.0f} s; ask it yourself:")
    say(f"  {python} -m pipelines.page {folder}")
    say(f'  {python} -m pipelines.generate {folder} text2image "a large red circle"')
    say(f'  {python} -m pipelines.generate {folder} describe IMAGE "Is there a red circle in the image?" --short')
    failures = failures_of(t2i, unified)
    for failure in failures:
        say(f"DID NOT LEARN: {failure}")
    if failures:
        sys.exit(1)


def _results(run: Path, *, first: bool = False) -> dict[str, Any]:
    """Results of the run's first or last evaluated step, by measure."""
    from callbacks.measures.records import read_results
    from modules.files import step_folders

    return read_results(step_folders(run / RECORDS)[0 if first else -1])


def _fd_name(results: dict[str, Any]) -> str:
    return str(next(name for name in results["fd_pool"]["metrics"] if name.startswith("fd")))


def table_of(mmu: Path, t2i: Path, unified: Path) -> "Table":
    """Each measure before training, after stage 2, and of a trivial answer."""
    from rich.table import Table

    table = Table("measure", title="What the demo learnt")
    for column in ("untrained", "stage 2", "± std err", "trivial baseline"):
        table.add_column(column, justify="right")
    untrained, after = _results(mmu, first=True), _results(unified)
    for measure, metric, title, baseline in MEASURES:
        result = after[measure]
        before, value = untrained[measure]["metrics"][metric], result["metrics"][metric]
        error, trivial = result["standard_errors"][metric], result["baselines"][metric]
        table.add_row(title, f"{before:.3f}", f"{value:.3f}", f"{error:.3f}", f"{trivial:.3f} ({baseline})")
    before_drawing = _results(t2i, first=True)
    followed, unfollowed = after["content_scenes"], before_drawing["content_scenes"]["metrics"]
    for metric, title in CONTENT:
        value, error = followed["metrics"][metric], followed["standard_errors"][metric]
        best, shuffled = followed["metrics"][f"reconstructed/{metric}"], followed["baselines"][metric]
        trivial = f"{shuffled:.3f} (shuffled captions); {best:.3f} at best"
        table.add_row(f"pictures: {title}", f"{unfollowed[metric]:.3f}", f"{value:.3f}", f"{error:.3f}", trivial)
    drawn, undrawn = after["fd_pool"], before_drawing["fd_pool"]
    name = _fd_name(after)
    ceiling = drawn["metrics"]["r" + name]
    table.add_row(
        f"pictures: Fréchet distance {name}, lower is better",
        f"{undrawn['metrics'][name]:.3f}",
        f"{drawn['metrics'][name]:.3f}",
        "-",
        f"{drawn['baselines'][name]:.3f} (random codes); {ceiling:.3f} at best",
    )
    return table


def failures_of(t2i: Path, unified: Path) -> list[str]:
    """Measures within three standard errors of their trivial baseline, and pictures that are not much better than
    untrained ones or do not follow their captions."""
    found = []
    after = _results(unified)
    for measure, metric, title, baseline in MEASURES:
        result = after[measure]
        value, trivial = result["metrics"][metric], result["baselines"][metric]
        if value < trivial + 3 * result["standard_errors"][metric]:
            found.append(f"{title} {value:.3f} is not above {trivial:.3f} ({baseline}) by three standard errors")
    name = _fd_name(after)
    drawn, undrawn = after["fd_pool"]["metrics"][name], _results(t2i, first=True)["fd_pool"]["metrics"][name]
    if drawn > 0.5 * undrawn:
        found.append(f"{name} {drawn:.3f} is not below half of the untrained model's {undrawn:.3f}")
    content = after["content_scenes"]["metrics"]["content"]
    if content < LEAST_CONTENT:
        found.append(f"content {content:.3f} is below {LEAST_CONTENT}: pictures do not follow their captions")
    return found


def _sheet(run: Path) -> "Image.Image":
    """Captions over real pictures, their VQ reconstructions, and pictures generated from the captions."""
    from PIL import Image, ImageDraw

    from callbacks.measures.pictures import require_vq
    from callbacks.measures.samples import SamplesConfig
    from datamodules.benchmarks.coco import CaptionSet
    from datamodules.images import centre_crop, read_image, to_image, to_tensor
    from pipelines.run.trained import load_trained

    trained = load_trained(run)
    samples, vq = trained.config.evaluation.section(SamplesConfig), require_vq(trained.context)
    assert samples is not None
    pairs = CaptionSet.read(Path(samples.captions), Path(samples.images)).choose(SHEET_CAPTIONS, samples.seed)
    real = [centre_crop(read_image(pair.image), vq.image_size) for pair in pairs]
    rebuilt = [to_image(vq.decode(vq.encode(to_tensor(image)[None]))[0]) for image in real]
    drawn = [trained.draw(pair.caption, seed=number)[0] for number, pair in enumerate(pairs)]
    side, margin, text = 160, 8, 72
    sheet = Image.new("RGB", (len(pairs) * (side + margin) + margin, 3 * (side + margin) + text), "white")
    brush = ImageDraw.Draw(sheet)
    for column, (pair, *images) in enumerate(zip(pairs, real, rebuilt, drawn, strict=True)):
        left = margin + column * (side + margin)
        brush.multiline_text((left, margin), textwrap.fill(pair.caption, 26), fill="black")
        for row, image in enumerate(images):
            sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (left, text + row * (side + margin)))
    return sheet


if __name__ == "__main__":
    run_verb(main)
