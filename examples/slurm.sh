#!/bin/bash
# Pre-trains on several nodes under Slurm. The run folder is on a disk that all nodes share.
#
#   sbatch --nodes 4 --gpus-per-node 8 examples/slurm.sh photos/ --model vit-large --out runs/photos
#
# One torchrun agent per node starts a process for each GPU. When a process dies, all are started again and resume from the last
# checkpoint. Before the time limit (or a preemption) the run saves a checkpoint, and the job is queued again. If a node fails,
# --requeue does that.
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
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1                                    # needed to readmit a node (docs/many-gpus.md)
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 10 \
  --rdzv-backend c10d --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 10000))" --rdzv-id "$SLURM_JOB_ID" \
  --module unveil pretrain "$@" &

stopped=
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM                # to the agents, not to this shell
wait $!
code=$?
if [ -n "$stopped" ]; then
  wait                                                                         # until they have saved a checkpoint
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
