#!/bin/sh
# Pre-trains with one process per GPU on this machine. Run the same command again to resume, with any number of processes.
#
#   GPUS=8 examples/torchrun.sh photos/ --model vit-base --out runs/photos
#
# On the CPU, to try it out:  GPUS=2 examples/torchrun.sh digits --device cpu --epochs 0.2 --out runs/two
# To see a restart:  kill -9 PID    (all processes start again and resume from the last checkpoint, up to ten times)
# If the model is too large for one GPU, add  --parallel fsdp   (the model is sharded over the processes)
# For several machines see docs/many-gpus.md, and for Slurm examples/slurm.sh
set -eu
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
exec torchrun --standalone --nproc-per-node "${GPUS:-1}" --max-restarts 10 --module unveil pretrain "$@"
