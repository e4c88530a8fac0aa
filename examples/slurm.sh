#!/bin/bash
# Pre-trains on several nodes under Slurm. The run folder stands on a disk that all of them share.
#
#   sbatch --nodes 4 --gpus-per-node 8 examples/slurm.sh photos/ --model vit-large --out runs/photos
#
# One agent of torchrun a node starts a process for each GPU. When a process dies, all are started again and go on from the last
# checkpoint. Before the time limit (or a preemption) the run saves, and the job queues again; --requeue does it when a node fails.
#SBATCH --job-name=unveil
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@90
set -u
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 10 \
  --rdzv-backend c10d --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 10000))" --rdzv-id "$SLURM_JOB_ID" \
  --module unveil pretrain "$@" &

stopped=
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM                # to the agents, and not to this shell
wait $!
code=$?
if [ -n "$stopped" ]; then
  wait                                                                         # until they have saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
