# shellcheck shell=bash
# What the batch scripts share: describing the job from SLURM_*, running one training, and deciding what comes next.
# stage1.sh, stage2.sh and sweep.sh source it from the repository's root. Set these in the environment:
#   OMNIMAMBA_ENV    where Python is: the folder of a virtual or conda environment (default .venv), an Apptainer image
#                    (*.sif), or a Pyxis image (*.sqsh, docker://...). An image must have python on its PATH
#   RUNS             folder of the run folders, on a file system that all nodes share (default runs)
#   MAX_FAILURES     how often a failed job is started again (default 10); twice without progress is enough, and being
#                    preempted does not count
#   DOCTOR           0: do not run `pipelines.doctor check` on each node before training
# Exit codes: 0 only if the run folder has COMPLETE; 75 if told to stop, to go on later; otherwise the training's own.

PREEMPTED=75 USER_ERROR=2 # as in pipelines/run/ending.py

say() { echo "== $(date '+%F %T') $*"; }
fail() { echo "error: $*" >&2; exit "$USER_ERROR"; }

# run_of CONFIG [OVERRIDE...]: prints the run folder: the last run.dir=, or else named after the configuration file
run_of() {
    local config=$1 word run
    run=${RUNS:-runs}/$(basename "$config" .yaml)
    for word in "${@:2}"; do
        [[ $word != run.dir=* ]] || run=${word#run.dir=}
    done
    echo "$run"
}

# steps_of CONFIG [OVERRIDE...]: prints trainer.max_steps as the words or else the file itself name it. Only Python can
# read all of YAML: where the number is missing, there twice, or not plainly decimal, nothing is printed.
steps_of() {
    local number='[1-9][0-9_]*' text word
    local inside="(^|[[:blank:]{,])max_steps:[[:blank:]]+($number)[[:blank:]]*([,}]|$)"
    text=$(sed -E 's/(^|[[:space:]])#.*//' "$1" | grep max_steps || true) # without comments
    for word in "${@:2}"; do
        case $word in
            trainer.max_steps=*) text="max_steps: ${word#*=}" ;;
            trainer=*max_steps*) text=${word#*=} ;;
        esac
    done
    [ "$(grep -o max_steps <<<"$text" | wc -l)" = 1 ] || return 0
    [[ ! $text =~ $inside ]] || echo "${BASH_REMATCH[2]//_/}"
}

# is_complete: whether RUN is complete at STEPS. If it is so at another step, Python goes on from there or says why not
is_complete() {
    local step
    [ -e "$RUN/COMPLETE" ] || return 1
    step=$(tr -cd 0-9 <"$RUN/COMPLETE")
    [ -z "$step" ] || [ -z "$STEPS" ] || [ "$step" = "$STEPS" ]
}

# completed: prints which COMPLETE is in RUN; a training that reaches its end writes a new one
completed() { stat -c '%i %y' "$RUN/COMPLETE" 2>/dev/null || true; }

# Sets JOB, ENVIRONMENT (srun's options) and PYTHON (the command), and exports what the ranks need to find each other.
describe_job() {
    JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    JOB=${JOB:-$SLURM_JOB_ID}
    TASKS=${SLURM_NTASKS_PER_NODE:?ask for --ntasks-per-node: one task for each GPU}
    local gpus=${SLURM_GPUS_PER_NODE:-$TASKS}
    gpus=${gpus##*:} # drops the kind, as in h200:8
    [ "$gpus" = "$TASKS" ] || fail "$gpus GPUs and $TASKS tasks on a node; --gpus-per-node and --ntasks-per-node must be equal"
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000)) # below the kernel's ephemeral ports
    export MASTER_ADDR MASTER_PORT
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit it
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
    export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/triton-$(id -u)} # on the node's own disk, not on NFS
    unset SLURM_EXPORT_ENV                                             # with sbatch --export=NONE ranks have no PATH

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
    STEPS=$(steps_of "$@")
    if is_complete; then
        say "$RUN is complete; nothing to do"
        exit 0
    fi
    BEFORE=$(completed)
    describe_job
    mkdir -p "$RUN"
    rm -f "$RUN/PREEMPTED"
    local each=(srun --kill-on-bad-exit=1 --wait=60 --label --export=ALL "${ENVIRONMENT[@]}")
    local words=("$config" "hardware.nodes=$SLURM_JOB_NUM_NODES" "hardware.devices=$TASKS" "${@:2}" "run.dir=$RUN")
    if [ "${DOCTOR:-1}" != 0 ]; then
        "${each[@]}" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 "${PYTHON[@]}" -m pipelines.doctor check "${words[@]}" ||
            settle $?
    fi
    # Signals are blocked, so that they wait until Python listens. If env is too old for that (before coreutils 8.31),
    # they are ignored, and so lost. exec replaces the shell: many clusters signal only a task's first process.
    # shellcheck disable=SC2016 # the inner shell's own
    "${each[@]}" bash -c 'hold=(env --block-signal=USR1,USR2,TERM)
        "${hold[@]}" true 2>/dev/null || { hold=() && trap "" USR1 USR2 TERM; }
        exec "${hold[@]}" "$@"' rank "${PYTHON[@]}" -m pipelines.train "${words[@]}" &
    local srun=$! code=0
    # Every signal to the batch shell is passed to the ranks as USR1, because TERM would make srun kill them.
    trap 'say "told to stop"; kill -USR1 '"$srun" USR1 USR2 TERM
    wait "$srun" || code=$?
    while kill -0 "$srun" 2>/dev/null; do # a trapped signal interrupts wait
        code=0
        wait "$srun" || code=$?
    done
    settle "$code"
}

# settle CODE: ends the job as the run folder says. srun's exit code alone is a race between ranks: a new COMPLETE counts
# whatever it is, and an old one only if Python found nothing left to do.
settle() {
    local code=$1 state newest failures now
    trap '' USR1 USR2 TERM
    say "training ended with code $code"
    now=$(completed)
    if [ -n "$now" ] && { [ "$code" = 0 ] || [ "$now" != "$BEFORE" ]; }; then exit 0; fi
    # If Slurm itself is ending the job, its fate is decided. It is already requeued (preempted, or by an
    # administrator), or it is cancelled, and `scontrol requeue` would bring it back. Only the time limit is left to us.
    state=$(scontrol --oneliner show job "$JOB" | grep -oE '(JobState=RUNNING|Reason=TimeLimit)' || true)
    if [ -z "$state" ]; then
        say "ended by Slurm; if it does not come back, the same command goes on from the last checkpoint"
        exit "$PREEMPTED"
    fi
    [ ! -e "$RUN/PREEMPTED" ] || requeue "told to stop at step $(cat "$RUN/PREEMPTED")" 3
    [ "$code" != "$PREEMPTED" ] || requeue "stopped while it waited" 10 # for the run folder, other ranks or data
    [ "$code" != "$USER_ERROR" ] || fail "a new start would not help; see above"
    newest=$(find "$RUN/checkpoints" -maxdepth 1 -name 'step-*' -printf '%f\n' 2>/dev/null | sort | tail -n 1 || true)
    code=$((code ? code : 1))
    failures=$(grep -c '^failed' "$RUN/.starts-$JOB" 2>/dev/null || true)
    if [ "${failures:-0}" -ge "${MAX_FAILURES:-10}" ]; then
        say "failed more than ${MAX_FAILURES:-10} times"
        exit "$code"
    fi
    requeue "failed at ${newest:-no checkpoint}" 2
}

# requeue WHY TIMES: puts the job back into the queue, unless it ended like this TIMES times in a row without progress.
# Slurm ends this script, and starts it again after about two minutes.
requeue() {
    local starts=$RUN/.starts-$JOB # one line per start: how it ended
    echo "$1" >>"$starts"
    if [ "$(tail -n "$2" "$starts" | grep -cxF "$1")" = "$2" ]; then
        say "$1, $2 times in a row: another start would end the same way"
        exit "$((code == PREEMPTED ? 1 : code))"
    fi
    say "requeued: $1"
    scontrol requeue "$JOB" || say "this cluster does not requeue; submit the same command again: it goes on from there"
    trap 'exit "$PREEMPTED"' TERM
    sleep 60 & # in the background, because a trap waits for foreground commands
    wait
    exit "$PREEMPTED"
}
