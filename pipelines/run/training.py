"""One attempt at a run: training, callbacks and tracking, and how it ends."""

import warnings
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

from callbacks.launched import LaunchedRanks
from callbacks.tracking import Tracker
from modules import signals
from modules.checkpoints import STATE
from modules.files import code_version
from modules.model_files import KEY, keep
from modules.run_files import PROVENANCE
from pipelines.run.compose import Parts, weight_fingerprints
from pipelines.run.config import as_dict
from pipelines.run.console import say, warn
from pipelines.run.ending import DONE, PREEMPTED, ended_in_order
from pipelines.run.progress import TrainingProgress
from pipelines.run.runfolder import RunFolder
from pipelines.run.trainer import build_callbacks, build_trainer


@dataclass(frozen=True, kw_only=True)
class Training:
    """A started attempt; rank 0 ``leads``, which means that only it writes and prints."""

    run: RunFolder
    parts: Parts
    leads: bool
    tracker: Tracker
    progress: TrainingProgress
    launched: LaunchedRanks
    trainer: pl.Trainer

    @classmethod
    def begin(cls, run: RunFolder, parts: Parts, *, leads: bool) -> "Training":
        """Note the attempt in the run folder, and build the tracker, callbacks and trainer."""
        config, settings = run.config, as_dict(run.config)
        run_id, attempt = "", 0
        if leads:
            weights = weight_fingerprints(config, parts.stage.model, resumed=run.checkpoint is not None)
            weights |= {f"init_from/{origin.path}": origin.checkpoint for origin in parts.origins}
            run_id, attempt = run.begin(parts.data.fingerprints(), weights | parts.files.as_dict())
            keep(run.path, config.model)
        progress = TrainingProgress(config.name, config.trainer.max_steps, stage=config.stage.name)
        about: dict[str, Any] = {"name": config.name, "run_id": run_id, "attempt": attempt, "settings": settings}
        tracker = Tracker(run.path, config.tracking, **about, write=leads, report=say, watch=progress.watch)
        for origin in parts.origins:
            tracker.use_checkpoint(origin.run_id, origin.manifest)
        tracker.log_files("provenance", "provenance", run.path / PROVENANCE)
        facts = {"config": settings, "code": code_version(), "wandb_run_id": run_id, "attempt": attempt}
        facts |= {KEY: parts.files.as_dict()}
        launched = LaunchedRanks()
        trainer = build_trainer(config, [launched, *build_callbacks(config, tracker, parts, progress.show, facts)])
        launched.attach(trainer)
        return cls(
            run=run,
            parts=parts,
            leads=leads,
            tracker=tracker,
            progress=progress,
            launched=launched,
            trainer=trainer,
        )

    def to_its_end(self) -> None:
        """Train to the last step, or until told to stop.

        Raises:
            SystemExit: told to stop, or interrupted; see `pipelines.run.ending`.
        """
        with ended_in_order(self.launched, self._close) as outcome:
            try:
                outcome.code = self._fit()
            except SystemExit:
                if self.leads:  # now, because the other ranks may take a while to end
                    step = self.trainer.global_step
                    warn(f"stopped at step {step}; start the same command again to go on from the last checkpoint")
                raise
        if outcome.code == PREEMPTED:
            if not self.leads:
                raise SystemExit(DONE)  # if another rank exits with another code, srun and Lightning kill rank 0
            warn(
                f"told to stop by {signals.received() or 'a signal to another rank'}: saved at step "
                f"{self.trainer.global_step}; start the same command again to go on from there"
            )
            raise SystemExit(PREEMPTED)
        if self.leads:
            say(
                f"{self.run.config.name}: complete at step {self.trainer.global_step}; everything is in {self.run.path}"
            )

    def _close(self, code: int) -> None:
        self.progress.close()
        self.tracker.close(code, preempted=code == PREEMPTED)

    def _fit(self) -> int:
        """Train; return `DONE`, or `PREEMPTED` if training was told to stop.

        Raises:
            SystemExit: interrupted.
        """
        trainer, checkpoint = self.trainer, self.run.checkpoint
        with warnings.catch_warnings():
            # Lightning recommends as many workers as cores, but each worker decodes only a few images.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # Lightning does not know that the position is in the state of the data module, not of the loader.
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # from Lightning with this version of torch
            trainer.fit(
                self.parts.stage,
                datamodule=self.parts.data,
                ckpt_path=checkpoint and checkpoint / STATE,
                weights_only=bool(checkpoint),
            )
        if trainer.interrupted:
            raise SystemExit
        if trainer.should_stop:
            if self.leads:
                self.run.pause(trainer.global_step)
            return PREEMPTED
        if trainer.global_step < trainer.max_steps:
            raise RuntimeError(f"training ended at step {trainer.global_step} of {trainer.max_steps} without an error")
        self.tracker.require_written()
        if self.leads:
            self.run.finish(trainer.global_step)
        return DONE
