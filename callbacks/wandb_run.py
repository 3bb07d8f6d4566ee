"""The W&B half of tracking. A separate thread starts, feeds and ends the W&B run, so training never waits for it."""

import logging
import netrc
import os
import queue
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from callbacks.tensorboard import tensorboard_problems
from callbacks.wandb_names import length_problems, mode_problems, place_problems, shown_name, tag_problems
from modules.redaction import redact, redacted

log = logging.getLogger(__name__)

CLOUD = "https://api.wandb.ai"
QUEUED = 10_000
"""At most this many entries wait for W&B; a row is a few hundred bytes."""
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go in addition to the run folder."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto``: what WANDB_MODE says. If it is not set: online if an API key is found, offline otherwise."""
    project: str = "omnimamba"
    """W&B project."""
    entity: str | None = None
    """The user or team whose project it is; null: what W&B has for its key."""
    group: str | None = None
    """W&B group of the run; null: none."""
    tags: tuple[str, ...] = ()
    """W&B tags of the run."""
    tensorboard: bool = False
    """Write event files for TensorBoard into the run folder too."""
    patience_seconds: float = 30.0
    """How long W&B may take to start, and to finish at the end of a run, before we give up on it. Training does not
    wait."""

    def problems(self) -> list[str]:
        """Broken rules, each with the way out. W&B's own count only where W&B is used."""
        found = []
        if chosen_mode(self) != "disabled":
            found += place_problems(self.project, self.entity, "tracking.project", "tracking.entity")
            found += length_problems(self.group, "tracking.group") + tag_problems(self.tags, "tracking.tags")
        if self.wandb == "auto":
            found += mode_problems()
        if self.tensorboard:
            found += tensorboard_problems()
        if not self.patience_seconds > 0:
            found.append(f"tracking.patience_seconds={self.patience_seconds} must be above 0")
        return found


class WandbRun:
    """One W&B run, online or offline. Its thread runs the actions in the order of `put`.

    If W&B does not answer in time, the attempt is kept offline, with everything put in so far. Actions that fail are
    skipped, with one warning: the run folder has all the data.
    """

    def __init__(
        self, folder: Path, config: TrackingConfig, *, name: str, run_id: str, settings: dict[str, Any], report: Report
    ) -> None:
        # W&B's error reporting would wait for its own server at the end of every run. wandb is imported here and not
        # in the thread, because workers that are forked during an import can hang
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb  # noqa: F401

        self.folder, self.config, self.report = folder, config, report
        self.id = run_id
        self._about = {"name": shown_name(name), "config": redacted(settings)}
        self._queue: queue.Queue[Callable[[Any], None] | None] = queue.Queue(QUEUED)
        self._left = False
        self._told = False
        self._exit_code, self._preempted = 0, False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def put(self, action: Callable[[Any], None]) -> None:
        """Queue ``action``, to be called with the W&B run. Returns at once."""
        if self._left:
            return
        try:
            self._queue.put_nowait(action)
        except queue.Full:
            self._leave(f"W&B does not keep up ({QUEUED} entries wait for it) and gets nothing more of this attempt")

    def close(self, exit_code: int = 0, *, preempted: bool = False) -> None:
        """End the W&B run, within twice ``patience_seconds``. W&B shows it as finished, as failed if ``exit_code`` is
        not 0, or as preempted."""
        self._exit_code, self._preempted = exit_code, preempted
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return  # `put` has warned already
        self._thread.join(2 * self.config.patience_seconds)
        if self._thread.is_alive():
            self._leave(f"W&B did not finish within {2 * self.config.patience_seconds:g} s and is abandoned")

    def _work(self) -> None:
        run = self._start()
        if run is None:
            return
        while (action := self._queue.get()) is not None:
            if self._left:
                return
            try:
                action(run)
            except Exception as error:  # noqa: BLE001  # whatever W&B raises, training goes on with the local files
                self._tell(f"W&B failed ({error}); it skips what fails, and further failures are not reported")
        if not self._left:
            try:
                if self._preempted:
                    run.mark_preempting()
                run.finish(exit_code=self._exit_code)
            except Exception as error:  # noqa: BLE001  # as above
                self._tell(f"W&B could not end its run ({error})")

    def _start(self) -> Any:
        """The W&B run, or None if there is none."""
        mode, why = tracking_mode(self.config)
        if mode == "disabled":
            self._left = True
            self.report(f"W&B is disabled; metrics are in {self.folder}")
            return None
        try:
            try:
                run = self._begin(mode)
            except Exception as error:
                if mode == "offline":
                    raise
                mode, why = "offline", f"W&B cannot be reached ({error})"
                run = self._begin_offline()
        except Exception as error:  # noqa: BLE001  # as above
            self._leave(f"W&B cannot be started ({why and f'{why}; '}{error})")
            return None
        if mode != "offline":
            self.report(f"W&B: run {self.id}, {run.url}")
        else:
            say = log.warning if why.startswith("W&B") else self.report
            say(
                redact(
                    f"{why}: W&B data is kept offline in {self.folder / 'wandb'}; "
                    f"`python -m pipelines.report sync {shlex.quote(str(self.folder))}` uploads it"
                )
            )
        return run

    def _begin(self, mode: str) -> Any:
        import wandb

        run = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            group=self.config.group,
            tags=list(self.config.tags),
            id=self.id,
            resume=None if mode == "offline" else "allow",
            dir=self.folder,
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(
                init_timeout=self.config.patience_seconds,
                finish_timeout=self.config.patience_seconds,
                x_transaction_log_flush_interval=1.0,  # a kill loses a second
                silent=True,
                console="off",
                # provenance.json has this already, without the secrets that a remote's URL may contain
                disable_git=True,
                disable_code=True,
                x_save_requirements=False,
            ),
            **self._about,
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def _begin_offline(self) -> Any:
        """Start offline after a failed online start, whose service still holds the run's id."""
        import wandb

        wandb.teardown()
        return self._begin("offline")

    def _leave(self, why: str) -> None:
        self._left = True
        self._tell(why)

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "%s. All metrics are in %s; `python -m pipelines.report sync` uploads them",
                redact(what),
                self.folder,
            )


def chosen_mode(config: TrackingConfig) -> str:
    """The mode that the configuration or WANDB_MODE asks for."""
    return os.environ.get("WANDB_MODE", "online") if config.wandb == "auto" else config.wandb


def tracking_mode(config: TrackingConfig) -> tuple[str, str]:
    """The mode (online, offline or disabled) and, if offline, why."""
    mode = chosen_mode(config)
    if mode in ("disabled", "offline"):
        return mode, f"{mode} as configured"
    return (mode, "") if has_key() else ("offline", "no W&B API key (WANDB_API_KEY)")


def has_key() -> bool:
    """Whether W&B has an API key for its server. Without one, it would ask for it on the terminal."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or CLOUD).hostname
    try:
        return host is not None and netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
