"""Builds one W&B run from a run folder, whatever W&B already has of its attempts.

W&B cannot merge the offline segments of a run that was killed and requeued: they overwrite each other, and a resumed
run drops rows before its last step. So nothing is merged. ``metrics.jsonl`` is the source of truth: a new offline run
with the same id is built from it, and `wandb sync` uploads it in place of what the server has.
"""

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from callbacks.measures.answers import COLUMNS, TABLE_ROWS
from callbacks.measures.samples import CAPTIONS, read_captions
from callbacks.tracking import read_metrics
from callbacks.wandb_names import length_problems, place_problems, shown_name, tag_problems
from callbacks.wandb_run import TrackingConfig
from datamodules.images import read_image
from modules.files import step_name, step_of
from modules.json_lines import read_rows
from modules.reading import checked
from modules.run_files import CONFIG, METRICS, PROVENANCE, RECORDS
from pipelines.report.curves import METRIC_KEYS
from pipelines.report.read import Run, read_runs
from pipelines.report.samples import Answer, read_answers, sample_folders
from pipelines.run.claim import claim
from pipelines.run.console import say, warn

MERGED = "wandb_merged"
"""Subfolder of the run folder for the merged run; rebuilt each time."""


class _Tracking(TypedDict, total=False):
    """What config.yaml says about W&B; other keys do not matter here."""

    project: str
    entity: str | None
    group: str | None
    tags: list[str]


@dataclass(frozen=True, kw_only=True)
class _About:
    """How W&B files a run."""

    project: str
    entity: str | None
    group: str | None
    tags: tuple[str, ...]
    name: str


def sync_run(folder: Path, *, offline: bool = False, project: str | None = None, entity: str | None = None) -> Path:
    """Build the merged W&B run of ``folder``, upload it unless ``offline``, and return its path.

    ``project`` and ``entity`` take the place of the run's own.

    Raises:
        ConfigError: a training is writing into the folder.
        ValueError: it is not a run folder, its files are damaged, W&B does not take its names, or the upload failed.
    """
    [run] = read_runs([folder])
    if not run.wandb_run_id or not run.config:
        raise ValueError(f"{CONFIG} or {PROVENANCE} in {folder} is missing or damaged, so its W&B run is unknown")
    about = _about(run, project, entity)
    with claim(folder):
        merged, steps = _merge(run, about)
    say(f"{run.label}: {steps} steps in {merged}")
    command = [sys.executable, "-m", "wandb", "sync", str(merged.resolve())]
    if offline:
        say(f"upload it from a machine with network: {' '.join(['wandb', *command[3:]])}")
        return merged
    # run in that folder, because it leaves its own logs in ./wandb
    done = subprocess.run(command, cwd=folder / MERGED, env={**os.environ, "WANDB_MODE": "online"}, check=False)
    if done.returncode:
        raise ValueError(
            f"W&B did not accept {merged} (its own message is above). Nothing is lost: log in with `wandb login`, or "
            f"upload it from another machine: {' '.join(['wandb', *command[3:]])}"
        )
    say(f"{run.label}: uploaded")
    return merged


def _about(run: Run, project: str | None, entity: str | None) -> _About:
    """How W&B shall file ``run``.

    Raises:
        ValueError: W&B would refuse it.
    """
    where = f"{run.path / CONFIG}: tracking"
    kept = checked(run.get("tracking", {}), _Tracking, where)
    own = TrackingConfig()
    about = _About(
        project=project if project is not None else kept.get("project", own.project),
        entity=entity if entity is not None else kept.get("entity"),
        group=kept.get("group"),
        tags=tuple(kept.get("tags", ())),
        name=shown_name(checked(run.get("name", run.label), str, f"{run.path / CONFIG}: name")),
    )
    keys = [f"--{key}" if given is not None else f"tracking.{key}"
            for key, given in (("project", project), ("entity", entity))]  # fmt: skip
    problems = place_problems(about.project, about.entity, *keys)
    problems += length_problems(about.group, "tracking.group")
    if problems := problems + tag_problems(about.tags, "tracking.tags"):
        raise ValueError(
            f"W&B would not take {run.path}: {'; '.join(problems)}. Name another place with --project and --entity, or "
            f"correct {run.path / CONFIG}"
        )
    return about


def _merge(run: Run, about: _About) -> tuple[Path, int]:
    """Write the run's history as a new offline W&B run; return its folder and the number of steps.

    Raises:
        ValueError: metrics.jsonl is damaged, or W&B failed.
    """
    from wandb import Error

    history = _history(run)
    shutil.rmtree(run.path / MERGED, ignore_errors=True)
    (run.path / MERGED).mkdir()
    try:
        return _write(run, about, history), len(history)
    except Error as error:
        raise ValueError(f"W&B could not build its run in {run.path / MERGED}: {error}") from error


def _write(run: Run, about: _About, history: Mapping[int, dict[str, Any]]) -> Path:
    """Write ``history`` and the records of the run with W&B; return the folder."""
    import wandb

    session = wandb.init(
        **asdict(about),
        id=run.wandb_run_id,
        dir=run.path / MERGED,
        config=run.config,
        mode="offline",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True, save_code=False),
    )
    session.define_metric("step")
    session.define_metric("*", step_metric="step")
    for step in sorted(history):
        session.log({"step": step, **history[step]})
    _log_records(run, session)
    folder = Path(session.settings.sync_dir)
    session.finish()
    return folder


def _history(run: Run) -> dict[int, dict[str, Any]]:
    """Everything logged, as one row per step; if several attempts logged a step, the last attempt counts.

    Raises:
        ValueError: a line of metrics.jsonl is damaged.
    """
    path = run.path / METRICS

    def refuse(number: int, reason: str) -> None:
        raise ValueError(f"line {number} of {path} is not a row of metrics ({reason}); fix or delete the line")

    for _ in read_rows(path, METRIC_KEYS, damaged=refuse):
        pass
    history: dict[int, dict[str, Any]] = defaultdict(dict)
    for row in read_metrics(run.path):
        values = {key: value for key, value in row.items() if value is not None and key not in ("step", "time")}
        # the time of the step, not of the merge
        history[row["step"]] = values | ({"_timestamp": row["time"]} if "time" in row else {})
    run.notes.clear()
    for step, media in [*_pictures(run), *_tables(run)]:
        history[step] |= media
    for note in run.notes:
        warn(note)
    return history


def _pictures(run: Run) -> list[tuple[int, dict[str, Any]]]:
    """The sample pictures, in the form the tracker logs them."""
    import wandb

    found = []
    for folder in sample_folders(run):
        captions = run.noted(read_captions, folder / CAPTIONS) or {}
        images = {sample: run.noted(read_image, folder / f"{sample}.png") for sample in captions}
        pictures = [wandb.Image(image, caption=captions[sample]) for sample, image in images.items() if image]
        found.append((step_of(folder.name) or 0, {"eval/samples": pictures}))
    return found


def _tables(run: Run) -> list[tuple[int, dict[str, Any]]]:
    """The answers, in the form the tracker logs them; a picture that is not on this machine becomes its name."""
    import wandb

    found = []
    for step, results in run.results.items():
        for answers in read_answers(run, dict.fromkeys(results, step), TABLE_ROWS):
            rows = [[_cell(answer, column) for column in COLUMNS] for answer in answers.shown]
            table = wandb.Table(columns=list(COLUMNS), data=rows, allow_mixed_types=True)
            found.append((step, {f"{_prefix(run, answers.measure)}/answers": table}))
    return found


def _prefix(run: Run, measure: str) -> str:
    """The prefix under which the tracker logs a measure; the small evaluation has one of its own."""
    mini = f"eval_mini/{measure.removesuffix('_mini')}"
    small = measure.endswith("_mini") and any(name.startswith(f"{mini}/") for name in run.log.curves)
    return mini if small else f"eval/{measure}"


def _cell(answer: Answer, column: str) -> Any:
    import wandb

    if column == "correct":
        return answer.right
    if column == "image" and answer.picture is not None:
        try:
            return wandb.Image(read_image(answer.picture))
        except (ValueError, OSError):  # show its name instead
            pass
    return answer.record.get(column)


def _log_records(run: Run, session: Any) -> None:
    """Log the records as artifacts, like the tracker does."""
    import wandb

    for step, results in run.results.items():
        for name in results:
            folder = run.path / RECORDS / step_name(step) / name
            if folder.is_dir():
                artifact = wandb.Artifact(f"{run.wandb_run_id}-{name}-{step_name(step)}", type="eval_predictions")
                artifact.add_dir(str(folder))
                session.log_artifact(artifact)
