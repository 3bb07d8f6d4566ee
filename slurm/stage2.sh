#!/usr/bin/env bash
# Stage 2: unified fine-tuning, starting from both results of stage 1. From the repository's root:
#   sbatch slurm/stage2.sh [key=value ...]
#   sbatch slurm/stage2.sh pretrained=OmniMamba-1.3b.pth 'init_from=[]'  # from the authors' weights, without stage 1
# UNIFIED_CONFIG names another configuration file. MMU_RUN and T2I_RUN name other run folders of stage 1, init_from= what
# to start from instead. slurm/lib.sh lists the other settings.
#SBATCH --job-name=stage2
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.log
set -euo pipefail
cd "${OMNIMAMBA_ROOT:-$SLURM_SUBMIT_DIR}"
[ -e slurm/lib.sh ] || { echo "error: $PWD is not the repository; submit from its root, or set OMNIMAMBA_ROOT" >&2; exit 2; }
source slurm/lib.sh

start=()
if [[ " $*" != *" init_from="* ]]; then
    mmu=${MMU_RUN:-$(run_of "${MMU_CONFIG:-configs/stage1_mmu.yaml}")}
    t2i=${T2I_RUN:-$(run_of "${T2I_CONFIG:-configs/stage1_t2i.yaml}")}
    for run in "$mmu" "$t2i"; do
        [ -e "$run/COMPLETE" ] || fail "$run is not complete; finish stage 1 first, or name its run by MMU_RUN and T2I_RUN"
    done
    start=("init_from=[$mmu,$t2i]")
fi
train "${UNIFIED_CONFIG:-configs/stage2_unified.yaml}" "${start[@]}" "$@"
