"""Pictures and answers of a run, as the report shows them."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from callbacks.measures.answers import QuestionMeasure, table_rows
from callbacks.measures.records import Record, RecordBook
from callbacks.measures.registry import build_measures
from callbacks.measures.samples import CAPTIONS, read_captions
from datamodules.images import ImageSource, read_image
from modules.files import step_folders, step_name, step_of
from modules.run_files import CONFIG, RECORDS, SAMPLES
from pipelines.report.read import Run
from pipelines.run.config import load

SIDE = 128
"""Largest side of a picture on the page, in pixels."""
MOST_STEPS = 8
MOST_CAPTIONS = 16
MOST_ANSWERS = 24


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Pictures of the same captions at several steps, as data URIs."""

    steps: list[int]
    rows: list[tuple[str, list[str | None]]]
    """Caption, and its picture at each step."""
    remark: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question and the model's answer."""

    record: Record
    picture: ImageSource | None
    """The picture asked about; None if the benchmark is not on this machine."""
    right: bool | None
    """None if unknown."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Some of a measure's answers: half of them spread evenly over all, the other half wrong ones."""

    measure: str
    step: int
    right: int | None
    total: int
    shown: list[Answer]


def data_uri(picture: ImageSource, side: int = SIDE) -> str:
    """A picture for the page, scaled down to ``side`` pixels if it is larger.

    Raises:
        FileNotFoundError, ValueError: it is missing, or not a picture.
    """
    image = read_image(picture)
    form = "PNG" if max(image.size) <= side else "JPEG"
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, form, quality=88)
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def read_sheet(run: Run) -> Sheet | None:
    """The run's sample pictures, at no more than eight steps from first to last; None if there are none."""
    found = sample_folders(run)
    if not found:
        return None
    folders = _spread(found, MOST_STEPS)
    captions: dict[str, str] = {}
    for folder in folders:
        captions |= run.noted(read_captions, folder / CAPTIONS) or {}
    chosen = sorted(captions)[:MOST_CAPTIONS]

    def picture(folder: Path, sample: str) -> str | None:
        return run.noted(data_uri, folder / f"{sample}.png")

    rows = [(captions[sample], [picture(folder, sample) for folder in folders]) for sample in chosen]
    left_out = []
    if len(folders) < len(found):
        left_out.append(f"{len(folders)} of {len(found)} evaluated steps")
    if len(chosen) < len(captions):
        left_out.append(f"{len(chosen)} of {len(captions)} captions")
    return Sheet(
        steps=[step for folder in folders if (step := step_of(folder.name)) is not None],
        rows=rows,
        remark=" and ".join(left_out),
    )


def sample_folders(run: Run) -> list[Path]:
    """The folders of sample pictures, by step."""
    return [folder for folder in step_folders(run.path / SAMPLES) if (folder / CAPTIONS).is_file()]


def _spread(found: list[Path], most: int) -> list[Path]:
    """At most ``most`` of them, spread evenly from first to last."""
    if len(found) <= most:
        return found
    return [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]


def read_answers(run: Run, steps: Mapping[str, int], most: int = MOST_ANSWERS) -> list[Answers]:
    """At most ``most`` answers of each question measure in ``steps``, from the step given there."""
    asked: dict[str, list[Record]] = {}
    for name, step in steps.items():
        book = RecordBook(run.path / RECORDS / step_name(step) / name)
        asked[name] = [record for record in (run.noted(book.read) or {}).values() if _is_answer(record)]
    measures = (run.noted(_question_measures, run) if any(asked.values()) else None) or {}
    found = []
    for name, records in asked.items():
        if records:
            measure = next((m for task, m in measures.items() if name == task or name.startswith(f"{task}_")), None)
            found.append(_answers(run, name, steps[name], records, measure, most))
    return found


def _answers(
    run: Run, name: str, step: int, records: list[Record], measure: QuestionMeasure | None, most: int
) -> Answers:
    marks: list[bool] | None = None
    if measure is not None:
        marks = run.noted(lambda: [measure.is_correct(record) for record in records])
    right_of = dict(zip((r["sample_id"] for r in records), marks or [], strict=False))
    pictures = _pictures(measure) if measure is not None else {}
    shown = table_rows(records, marks or [True] * len(records), most)
    return Answers(
        measure=name,
        step=step,
        right=None if marks is None else sum(marks),
        total=len(records),
        shown=[
            Answer(record=r, picture=pictures.get(r["sample_id"]), right=right_of.get(r["sample_id"])) for r in shown
        ],
    )


def _pictures(measure: QuestionMeasure) -> dict[str, ImageSource]:
    """The pictures asked about, by sample id; none if the benchmark's files are not on this machine."""
    try:
        return {sample: question.image for sample, question in measure.questions.items()}
    except (ValueError, OSError):
        return {}


def _question_measures(run: Run) -> dict[str, QuestionMeasure]:
    """The configured question measures by key, which can tell whether an answer is right."""
    try:
        measures = build_measures(load(run.path / CONFIG, tracks=False).evaluation)
    except ValueError as error:
        raise ValueError(f"answers are not marked, because {run.path / CONFIG} does not load: {error}") from error
    return {measure.key: measure for measure in measures if isinstance(measure, QuestionMeasure)}


def _is_answer(record: Record) -> bool:
    return all(isinstance(record.get(key), str) for key in ("question", "raw", "gold"))
