# shellcheck shell=bash
# What the batch scripts share: everything about the job derived once from SLURM_*, one training, and what becomes of it.
# Sourced by stage1.sh and stage2.sh with the repository's root as working directory. Settings, all by environment:
#   OMNIMAMBA_ENV    what holds Python: a virtual or conda environment's folder (default .venv), an Apptainer image
#                    (*.sif), or a Pyxis image (*.sqsh, docker://...). The image holds bin/python on its PATH
#   RUNS             folder of the run folders, on a file system that all nodes share (default runs)
#   MAX_FAILURES     how many failures are started again (default 10); being preempted is none
#   DOCTOR           0: do not have `pipelines.doctor check` look at each node before training
# Exit codes: 0 only with COMPLETE in the run folder; 75 told to stop and to go on later; otherwise the training's own.

PREEMPTED=75 USER_ERROR=2 # pipelines/run/console.py

say() { echo "== $(date '+%F %T') $*"; }
fail() { echo "error: $*" >&2; exit "$USER_ERROR"; }

# run_of CONFIG [OVERRIDE...]: the run folder, named by the last run.dir= or else by the configuration file
run_of() {
    local config=$1 word run
    run=${RUNS:-runs}/$(basename "$config" .yaml)
    for word in "${@:2}"; do
        [[ $word != run.dir=* ]] || run=${word#run.dir=}
    done
    echo "$run"
}

# Sets JOB, ENVIRONMENT (the srun options) and PYTHON (the command) and exports what the ranks need to meet.
describe_job() {
    JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    JOB=${JOB:-$SLURM_JOB_ID}
    TASKS=${SLURM_NTASKS_PER_NODE:?ask for --ntasks-per-node: one task for each GPU}
    local gpus=${SLURM_GPUS_PER_NODE:-$TASKS}
    gpus=${gpus##*:} # of a kind, as in h200:8
    [ "$gpus" = "$TASKS" ] || fail "$gpus GPUs and $TASKS tasks on a node; --gpus-per-node and --ntasks-per-node must be equal"
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000)) # below the ports that the kernel hands out
    export MASTER_ADDR MASTER_PORT
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit it
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
    export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/triton-$(id -u)} # of the node: kernels are compiled once, and not over NFS
    unset SLURM_EXPORT_ENV                                             # sbatch --export=NONE would leave the ranks no PATH

    local place=${OMNIMAMBA_ENV:-.venv}
    ENVIRONMENT=() PYTHON=(python)
    case $place in
        *.sif) PYTHON=(apptainer exec --nv --bind "$PWD" --pwd "$PWD" "$place" python) ;;
        *.sqsh | docker://*) ENVIRONMENT=(--container-image="$place" --container-mounts="$PWD:$PWD" --container-workdir="$PWD") ;;
        *) PYTHON=("$place/bin/python")
            [ -x "${PYTHON[0]}" ] || fail "OMNIMAMBA_ENV=$place has no bin/python; run make setup, or name an environment or image" ;;
    esac
    say "job $JOB, start $((${SLURM_RESTART_COUNT:-0} + 1)), $SLURM_JOB_NUM_NODES x $TASKS on $SLURM_JOB_NODELIST, $place, ${SLURM_JOB_NAME}"
    scontrol show job "$SLURM_JOB_ID" | sed 's/^/==   /'
}

# train CONFIG [OVERRIDE...]: train in this job and end it
train() {
    local config=$1
    RUN=$(run_of "$@")
    [ -e "$config" ] || fail "$config is not there; name another configuration file"
    if [ -e "$RUN/COMPLETE" ]; then
        say "$RUN is complete; nothing to do"
        exit 0
    fi
    describe_job
    mkdir -p "$RUN"
    rm -f "$RUN/PREEMPTED"
    local each=(srun --kill-on-bad-exit=1 --wait=60 --label --export=ALL "${ENVIRONMENT[@]}")
    local words=("$config" "hardware.nodes=$SLURM_JOB_NUM_NODES" "hardware.devices=$TASKS" "${@:2}" "run.dir=$RUN")
    if [ "${DOCTOR:-1}" != 0 ]; then
        "${each[@]}" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 "${PYTHON[@]}" -m pipelines.doctor check "${words[@]}" ||
            settle $?
    fi
    # Signals wait until Python listens: blocked, or where env is too old for that (before coreutils 8.31) ignored, and
    # then lost. The shell has to be gone (exec): many clusters signal a task's first process alone.
    # shellcheck disable=SC2016 # the inner shell's own
    "${each[@]}" bash -c 'hold=(env --block-signal=USR1,USR2,TERM)
        "${hold[@]}" true 2>/dev/null || { hold=() && trap "" USR1 USR2 TERM; }
        exec "${hold[@]}" "$@"' rank "${PYTHON[@]}" -m pipelines.train "${words[@]}" &
    local srun=$! code=0
    # Whatever reaches the batch shell goes on to the ranks as USR1: TERM would make srun kill them.
    trap 'say "told to stop"; kill -USR1 '"$srun" USR1 USR2 TERM
    wait "$srun" || code=$?
    while kill -0 "$srun" 2>/dev/null; do # a trapped signal ends a wait
        code=0
        wait "$srun" || code=$?
    done
    settle "$code"
}

# settle CODE: end the job by what lies in the run folder; exit codes of srun alone are a race between ranks
settle() {
    local code=$1 state newest failures
    trap '' USR1 USR2 TERM
    say "training ended with code $code"
    [ ! -e "$RUN/COMPLETE" ] || exit 0
    # Once Slurm is ending the job, what becomes of it is decided: it is requeued already (preempted, by an administrator),
    # or cancelled, and `scontrol requeue` would bring it back. The time limit alone is ours to answer.
    state=$(scontrol --oneliner show job "$JOB" | grep -oE '(JobState=RUNNING|Reason=TimeLimit)' || true)
    if [ -z "$state" ]; then
        say "ended by Slurm; if it does not come back, the same command goes on from the last checkpoint"
        exit "$PREEMPTED"
    fi
    [ ! -e "$RUN/PREEMPTED" ] || requeue "told to stop at step $(cat "$RUN/PREEMPTED")" 3
    [ "$code" != "$USER_ERROR" ] || fail "this does not mend itself; see above"
    newest=$(find "$RUN/checkpoints" -maxdepth 1 -name 'step-*' -printf '%f\n' 2>/dev/null | sort | tail -n 1 || true)
    code=$((code ? code : 1))
    failures=$(grep -c '^failed' "$RUN/.starts-$JOB" 2>/dev/null || true)
    if [ "${failures:-0}" -ge "${MAX_FAILURES:-10}" ]; then
        say "failed more than ${MAX_FAILURES:-10} times"
        exit "$code"
    fi
    requeue "failed at ${newest:-no checkpoint}" 2
}

# requeue WHY TIMES: the job goes back into the queue, unless it ended just so TIMES times in a row: it makes no headway.
# Slurm ends this script, and starts it again after two minutes or so.
requeue() {
    local starts=$RUN/.starts-$JOB # how each start ended
    echo "$1" >>"$starts"
    if [ "$(tail -n "$2" "$starts" | grep -cxF "$1")" = "$2" ]; then
        say "$1, $2 times in a row: it would end so again"
        exit "$((code == PREEMPTED ? 1 : code))"
    fi
    say "requeued: $1"
    scontrol requeue "$JOB" || say "this cluster does not requeue; submit the same command again: it goes on from there"
    trap 'exit "$PREEMPTED"' TERM
    sleep 60 & # in the background: a trap waits for what runs in front
    wait
    exit "$PREEMPTED"
}
