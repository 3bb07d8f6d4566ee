#!/usr/bin/env bash
# What `wandb agent` takes for `python` under slurm/sweep.sh: it leaves the trial in the file $TRIAL, where the batch script
# finds it and trains it on all nodes, and stays until that has ended, so that the server sees a trial at work.
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
