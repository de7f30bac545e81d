#!/bin/bash
# Make a build on several nodes of a Slurm cluster: `sbatch examples/slurm_build.sh`, after you have changed the lines
# between #SBATCH and the last two. If the job ends before the build is finished, submit it again: it continues.
#SBATCH --job-name=folio-build
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem-per-cpu=2G
#SBATCH --time=12:00:00
#SBATCH --exclusive
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --output=folio-build-%j.log
set -euo pipefail

# An environment that all nodes share, with `pip install 'folio-lm[ray]'`.
source "$HOME/folio/.venv/bin/activate"
# Inputs, output and, for remote inputs, the cache must be on a file system that all nodes share.
export FOLIO_SHARDS=/shared/shards FOLIO_CACHE=/shared/cache

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head --lines=1)
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" hostname --ip-address | cut --delimiter=' ' --fields=1)
address=$head_ip:$((20000 + SLURM_JOB_ID % 10000))
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# Starts Ray on every node, runs the command after -- on the first one, and stops Ray.
srun --no-kill --kill-on-bad-exit=0 \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
    preprocess build --input '/shared/corpus/*.jsonl.zst' --name corpus --engine ray --address "$address"
