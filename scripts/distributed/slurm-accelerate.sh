#!/bin/bash
# Several nodes of SLURM by accelerate: ENGINE=fsdp2 sbatch --nodes 2 scripts/distributed/slurm-accelerate.sh RECIPE [key=value ...]
# ENGINE is a file beside this one: ddp, fsdp2, deepspeed-zero2 or deepspeed-zero3. Run it in the repository's folder, in an
# environment where hf-vlm is installed. For a port of your own: PORT=29501 sbatch ...
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

# SLURM_NODEID is known on each node only, so a shell there reads it; `accelerate` counts the processes of all nodes.
# shellcheck disable=SC2016
srun bash -c 'exec accelerate launch --config_file "$0" --machine_rank "$SLURM_NODEID" "$@"' \
    "scripts/distributed/${ENGINE:-ddp}.yaml" \
    --num_machines "$SLURM_JOB_NUM_NODES" --num_processes "$((SLURM_JOB_NUM_NODES * processes))" \
    --main_process_ip "$first_node" --main_process_port "$port" -m hf_vlm.cli train "$@"
