#!/usr/bin/env bash
# All stages: stage 1 (MMU and T2I side by side), then stage 2 if both succeeded. Run it from the repository's root:
#   bash slurm/chain.sh [--dry-run] [SBATCH OPTION ...] [key=value ...]
#   bash slurm/chain.sh --partition=gpu --nodes=4                 # options and overrides apply to every stage
# --dry-run asks Slurm whether it would accept each job, and submits none. Complete runs are left alone, so the chain
# can be submitted again at any time. The stages read their settings from the environment (slurm/lib.sh).
set -euo pipefail
[ -e slurm/lib.sh ] || { echo "error: $PWD is not the repository; start slurm/chain.sh from its root" >&2; exit 2; }

dry='' options=() overrides=()
for word in "$@"; do
    case $word in
        --dry-run) dry=yes ;;
        -*) options+=("$word") ;;
        *=*) overrides+=("$word") ;;
        *) echo "error: $word is neither --dry-run, an option of sbatch (-x, --x=y) nor key=value" >&2; exit 2 ;;
    esac
done

# submit SCRIPT [SBATCH OPTION ...]: sets JOB
submit() {
    local script=$1 command
    command=(sbatch --parsable "${@:2}" "${options[@]}" "$script" "${overrides[@]}")
    echo "${command[*]@Q}" | sed -E "s/'([[:alnum:]_.,:=\/%+-]+)'/\1/g" # quoted only where a shell needs it
    if [ -n "$dry" ]; then
        sbatch --test-only "${options[@]}" "$script" "${overrides[@]}"
        JOB=ID
        return
    fi
    JOB=$("${command[@]}")
    JOB=${JOB%%;*} # a federation appends the cluster's name
    echo "$script: job $JOB"
}

submit slurm/stage1.sh
submit slurm/stage2.sh --dependency="afterok:$JOB" --kill-on-invalid-dep=yes
