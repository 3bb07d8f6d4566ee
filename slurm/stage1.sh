#!/usr/bin/env bash
# Stage 1: MMU and T2I pre-training side by side, an array of two jobs. From the repository's root:
#   sbatch slurm/stage1.sh [key=value ...]                               # the overrides apply to both
#   sbatch --nodes=4 slurm/stage1.sh                                     # each on four nodes
#   sbatch --gpus-per-node=1 --ntasks-per-node=1 slurm/stage1.sh         # each on one GPU
#   sbatch --array=1 slurm/stage1.sh                                     # only T2I
# MMU_CONFIG and T2I_CONFIG name other configuration files. slurm/lib.sh lists the other settings.
#SBATCH --job-name=stage1
#SBATCH --array=0-1
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

case $SLURM_ARRAY_TASK_ID in
    0) train "${MMU_CONFIG:-configs/stage1_mmu.yaml}" "$@" ;;
    1) train "${T2I_CONFIG:-configs/stage1_t2i.yaml}" "$@" ;;
    *) fail "--array=$SLURM_ARRAY_TASK_ID is no part of stage 1; 0 is MMU, 1 is T2I" ;;
esac
