#!/usr/bin/env bash
# A Slurm array: every model with every seed, one task each, requeued until its run is finished.
#
#   python -m rsnn_fmnist --model plain --prepare-only      # once, where there is a network
#   sbatch scripts/slurm_array.sh "plain feedback stateful-synapse" 1,2,3
#   sbatch --array=0-3 --time=10 scripts/slurm_array.sh "plain feedback" "1 2" --epochs 20
#
# The arguments are MODELS, SEEDS and flags, as for scripts/sweep.sh. Submit from the folder in
# which `runs` will be created, in an environment in which `python -m rsnn_fmnist` works (or set PYTHON).
# Lines that begin with #SBATCH are options of sbatch; those on the command line override them.
# `squeue --me` lists the tasks, `scancel JOB` stops them; submitted again, the same command resumes
# them.
#
#SBATCH --job-name=rsnn_fmnist
# One task for each run, from 0: 3 models x 3 seeds are 0-8. `0-8%4` runs four at a time.
#SBATCH --array=0-8
# The resources of a task: one core. For a GPU, delete the first # of the next line.
##SBATCH --gpus=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
# Minutes until a task is requeued; short tasks start sooner. 120 s before the limit, Slurm sends
# USR1 to this script (B: to it alone), which has the run saved and requeues its task.
#SBATCH --time=15
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
# One log for each task; a requeued run appends to it.
#SBATCH --output=slurm-%A_%a.log
#SBATCH --open-mode=append
#
# Left out: one run on several GPUs or nodes, which torchrun starts (docs/processes.md).
set -euo pipefail

refuse() { # MESSAGE
  echo "slurm_array.sh: $1" >&2
  exit 2
}

for word in "${@:1:2}"; do
  case $word in -*) refuse "$word where MODELS or SEEDS should be, which come first" ;; esac
done
[ $# -ge 2 ] || refuse 'needs MODELS and SEEDS: sbatch slurm_array.sh "plain feedback" 1,2'
read -r -a models <<<"${1//[,$'\n']/ }"
read -r -a seeds <<<"${2//[,$'\n']/ }"
shift 2
((${#models[@]} && ${#seeds[@]})) || refuse "MODELS and SEEDS must name at least one each"

# Which run this task is: the models of the first seed, then those of the second, ...
task=${SLURM_ARRAY_TASK_ID:?is not set: submit this script with sbatch}
if [ $((task / ${#models[@]})) -ge ${#seeds[@]} ]; then
  echo "slurm_array.sh: task $task: no run is left for it; ${#models[@]} models x ${#seeds[@]} seeds take --array=0-$((${#models[@]} * ${#seeds[@]} - 1))"
  exit 0
fi
model=${models[task % ${#models[@]}]}
seed=${seeds[task / ${#models[@]}]}

run='' requeue='' asked='' told=''
stop() { # save and stop the run; only once, since a second signal would not save
  asked=yes
  if [ -n "$run" ] && [ -z "$told" ]; then
    told=yes
    kill -s TERM "$run" 2>/dev/null || true
  fi
}
trap 'requeue=yes; stop' USR1 # the time limit is near
trap stop TERM                # scancel, or preemption, after which Slurm requeues by itself

echo "== $(date), ${SLURMD_NODENAME:-$(uname -n)}: $model, seed $seed"
"${PYTHON:-python}" -m rsnn_fmnist --model "$model" --seed "$seed" --resume auto \
  "${@//\{model\}/$model}" &
run=$!
[ -z "$asked" ] || stop

while kill -0 "$run" 2>/dev/null; do wait "$run" || true; done # a trap interrupts wait
status=0
wait "$run" || status=$?
if [ -n "$requeue" ] && [ "$status" -eq 143 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$task"
  exit 0
fi
exit "$status"
