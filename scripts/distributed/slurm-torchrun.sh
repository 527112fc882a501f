#!/bin/bash
# Several nodes of SLURM by torchrun: sbatch --nodes 2 scripts/distributed/slurm-torchrun.sh RECIPE [key=value ...]
# From an environment where hf-vlm is installed, in a folder that all nodes see. FSDP2 and DeepSpeed by the recipe's settings:
# training.fsdp=true, or training.deepspeed=scripts/distributed/deepspeed-zero3.json. For a port of your own: PORT=29501 sbatch ...
# Executed as two "nodes" of one machine, with stand-ins for SLURM's commands and CPUs for GPUs; not run under SLURM.
#SBATCH --job-name=hf-vlm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log
set -euo pipefail

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=${PORT:-$((20000 + SLURM_JOB_ID % 20000))} # another for every job, as two may share a node
processes=${SLURM_GPUS_ON_NODE:-8}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((${SLURM_CPUS_PER_TASK:-8} / processes))}

# A task a node: its torchrun starts a process a GPU, and meets the others at the first node. When the time is nearly up, SLURM
# sends SIGTERM, and the processes have 240 seconds to save a checkpoint.
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$processes" --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d --rdzv-endpoint "$first_node:$port" --shutdown-timeout 240 -m hf_vlm.cli train "$@"
