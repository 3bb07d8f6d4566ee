#!/usr/bin/env bash
# Under slurm/sweep.sh, `wandb agent` starts this as its `python`. It writes the trial to the file $TRIAL, and the batch
# script trains it on all nodes. This script waits until that has ended, so the server sees the trial running.
set -euo pipefail
if [ "${1:-} ${2:-}" != "-m pipelines.train" ]; then
    echo "error: the sweep's command is python $*; slurm/sweep.sh needs: python -m pipelines.train CONFIG key=value ..." >&2
    exit 2
fi
# shellcheck disable=SC2034 # read by slurm/sweep.sh
words=("${@:3}")
declare -p words >"$TRIAL.tmp"
for name in WANDB_RUN_ID WANDB_SWEEP_ID WANDB_SWEEP_PARAM_PATH WANDB_ENTITY WANDB_PROJECT; do
    [ -z "${!name:-}" ] || declare -p "$name" >>"$TRIAL.tmp" # as declare -x: the ranks see them too
done
mv "$TRIAL.tmp" "$TRIAL"
until [ -e "$TRIAL.ended" ]; do sleep 1; done
exit "$(cat "$TRIAL.ended")"
