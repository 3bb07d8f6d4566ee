#!/usr/bin/env bash
# A sweep: an array of trials, each on all nodes and GPUs of its task. From the repository's root:
#   sbatch --array=0-3%2 slurm/sweep.sh configs/sweeps/ablation.yaml [key=value ...]     # no server: task K is trial K
#   sbatch --array=0-23%4 slurm/sweep.sh ENTITY/PROJECT/SWEEP_ID [key=value ...]         # each task asks W&B for one
#   sbatch --array=0-3 --nodes=4 slurm/sweep.sh ...                                      # each trial on four nodes
# A task that is preempted or fails is started again with the same trial, run folder and W&B run.
# Without a server, run `make sweeps` once; the method must be grid or random. When all trials are done,
# `python -m pipelines.sweep` with the same arguments and --trials shows the table.
# With W&B, `wandb sweep FILE.yaml` prints the SWEEP_ID. The server's early_terminate does not stop a trial.
# SWEEP_FOLDER names another folder than $RUNS/sweeps/NAME. slurm/lib.sh lists the other settings.
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%A_%a.log
set -euo pipefail
cd "${OMNIMAMBA_ROOT:-$SLURM_SUBMIT_DIR}"
[ -e slurm/lib.sh ] || { echo "error: $PWD is not the repository; submit from its root, or set OMNIMAMBA_ROOT" >&2; exit 2; }
source slurm/lib.sh

[ "$#" -gt 0 ] || fail "name a file of configs/sweeps/, or a W&B sweep as ENTITY/PROJECT/SWEEP_ID"
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || fail "a sweep is an array of trials; add --array=0-3%2 for four, two at a time"
sweep=$1
shift
name=${sweep##*/}
folder=${SWEEP_FOLDER:-${RUNS:-runs}/sweeps/${name%.y*ml}}

# Sets words: the arguments of pipelines.train for trial number SLURM_ARRAY_TASK_ID.
propose() {
    local proposed
    proposed=$(srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --export=ALL "${ENVIRONMENT[@]}" "${PYTHON[@]}" \
        -m pipelines.sweep "$sweep" --folder "$folder" --propose "$SLURM_ARRAY_TASK_ID" "$@") || exit $?
    mapfile -t words <<<"$proposed"
}

# Starts an agent for one trial. Its `python` is slurm/trial.sh, which writes the trial's arguments to the file $TRIAL.
ask() {
    [ -z "${ENVIRONMENT[*]}" ] || fail "an agent cannot run in a Pyxis image; set OMNIMAMBA_ENV to a folder or *.sif"
    mkdir -p "$TRIAL.bin"
    ln -sf "$PWD/slurm/trial.sh" "$TRIAL.bin/python"
    PATH=$TRIAL.bin:$PATH APPTAINERENV_PREPEND_PATH=$TRIAL.bin "${PYTHON[@]}" -m wandb agent --count 1 "$sweep" &
    agent=$!
    until [ -e "$TRIAL" ]; do
        if ! kill -0 "$agent" 2>/dev/null; then
            wait "$agent" || fail "no trial from $sweep; see above"
            say "$sweep has no trial for this task"
            exit 0
        fi
        sleep 1
    done
}

# Tells the agent how the trial ended, and gives it a minute to report to the server.
# shellcheck disable=SC2317 # called by the trap
dismiss() {
    echo "$1" >"$TRIAL.ended"
    for _ in $(seq 60); do
        kill -0 "${agent:-}" 2>/dev/null || return 0
        sleep 1
    done
    kill "$agent"
}

describe_job >/dev/null # train prints it
case $sweep in
    *.yaml | *.yml)
        propose "$@"
        train "${words[@]}" # this ends the job
        ;;
esac
mkdir -p "$folder"
TRIAL=$(realpath "$folder")/.trial-$JOB # one per task, so that a requeued task does not ask again
export TRIAL
rm -f "$TRIAL.ended"
[ -e "$TRIAL" ] || ask
# shellcheck source=/dev/null # sets words, and the environment that names the run
source "$TRIAL"
trap 'dismiss $?' EXIT
train "${words[@]}" "$@" "run.dir=$folder/$WANDB_RUN_ID"
