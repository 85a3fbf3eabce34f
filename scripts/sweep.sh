#!/usr/bin/env bash
# Train every model with every seed: a queue of runs over the devices of this machine.
#
#   scripts/sweep.sh MODELS SEEDS [flags]
#   scripts/sweep.sh "plain feedback" 1,2,3 --epochs 20
#   scripts/sweep.sh plain,feedback "1 2" --config 'configs/2022-{model}.toml'
#
# MODELS, SEEDS   one argument each, separated by spaces or commas; SEEDS `-` means one run for each
#                 model, with the seed of the flags or the default
# flags           of python -m rsnn_fmnist; {model} in them is replaced by the model's name
# DEVICES         variable: "cuda:0 cuda:1" or "cpu cpu"; a device named twice takes two runs at
#                 once. Default: every GPU, else one `cpu` for each core
# PYTHON          variable: the interpreter (default: python)
#
# Each run writes to <output-dir>/logs/<model>_seed<seed>.log. Ctrl-C or SIGTERM saves and stops all
# runs; the same command then resumes them and skips finished ones. Exit code: 0; 1 if a run failed
# (the others continue); 2 for a mistake in the command; 130 or 143 if interrupted.
#
# Left out: several machines (slurm_array.sh), and one run on several devices (torchrun).
set -euo pipefail

PYTHON=${PYTHON:-python}
EVERY=30 # seconds between two progress reports

devices=() queue=() folder=                     # the queue holds MODEL SEED; the folder, logs
pids=() labels=() logs=() since=()              # of the run on each device
next=0 finished=0 failed=0 stopped=0            # runs
signal='' code=0 forward=''                     # an interruption; whether to pass it on

main() {
  case ${1-} in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit 0 ;; esac
  command -v "$PYTHON" >/dev/null || refuse "$PYTHON: not found; activate the environment, or set PYTHON"
  [ $# -ge 2 ] || refuse "needs MODELS and SEEDS, one argument each (--help)"
  local word models=() seeds=() model seed
  for word in "$1" "$2"; do
    case $word in -?*) refuse "$word where MODELS or SEEDS should be, which come first (--help)" ;; esac
  done
  split models "$1"
  split seeds "$2"
  shift 2
  check_flags "${seeds[0]-}" "$@"
  for seed in ${seeds[@]+"${seeds[@]}"}; do
    for model in ${models[@]+"${models[@]}"}; do queue+=("$model $seed"); done
  done
  [ ${#queue[@]} -gt 0 ] || refuse "MODELS and SEEDS must name at least one each (--help)"
  prepare "$@"
  find_devices
  echo "${#queue[@]} runs on ${devices[*]}; logs in $folder"
  trap 'interrupt INT 130' INT
  trap 'interrupt TERM 143' TERM
  trap 'interrupt TERM 129' HUP
  trap '' PIPE # if the reader of standard output is gone, `report` stops the runs
  work "$@"
  conclude
}

refuse() { # MESSAGE
  echo "${0##*/}: $1" >&2
  exit 2
}

split() { # ARRAY TEXT: the words of the text, separated by spaces, commas or newlines
  read -r -a "${1?}" <<<"${2//[,$'\n']/ }"
}

check_flags() { # FIRST_SEED FLAG...: refuse the flags that the queue sets itself
  local seed=$1 flag
  shift
  for flag in "$@"; do
    case ${flag%%=*} in
      --model | --device | --resume | --test-only | --info | --prepare-only) ;;
      --seed) [ "$seed" != - ] || continue ;;
      *) continue ;;
    esac
    refuse "${flag%%=*}: leave it out; the queue sets models, seeds, devices and --resume (--help)"
  done
}

compose() { # MODEL SEED FLAG...: set `command` to a run's, without --device and --resume
  local model=$1 seed=$2
  shift 2
  command=("$PYTHON" -m rsnn_fmnist --model "$model")
  [ "$seed" = - ] || command+=(--seed "$seed")
  command+=("${@//\{model\}/$model}")
}

prepare() { # FLAG...: download the pictures once, and set the logs' folder
  local job model seed said status=0 command
  for job in "${queue[@]}"; do
    read -r model seed <<<"$job"
    [ "$seed" = "${queue[0]##* }" ] || break # one job for each model is enough
    compose "$model" "$seed" "$@"
    status=0
    # UTF-8 both ways gives the folder that the program names byte by byte
    said=$(PYTHONUTF8=1 PYTHONIOENCODING=utf-8 "${command[@]}" --prepare-only) || status=$?
    [ "$status" -lt 128 ] || exit "$status"
    [ "$status" -ne 0 ] || break # a model that fails here will fail alone, in the queue
  done
  [ "$status" -eq 0 ] || exit "$status"
  folder=$(dirname "$(sed -n 's/^run  *//p' <<<"$said")")/logs
  mkdir -p "$folder"
}

find_devices() {
  local info core
  split devices "${DEVICES-}"
  [ ${#devices[@]} -eq 0 ] || return 0
  info=$("$PYTHON" -m rsnn_fmnist --info)
  mapfile -t devices < <(sed -n 's/^\(cuda:[0-9][0-9]*\) .*/\1/p' <<<"$info")
  [ ${#devices[@]} -eq 0 ] || return 0
  for ((core = $(sed -n 's/^processor .* \([0-9]*\) cores$/\1/p' <<<"$info"); core > 0; core--)); do
    devices+=(cpu)
  done
}

interrupt() { # SIGNAL CODE: a trap; the loop passes the signal on
  signal=$1 code=$2 forward=yes
}

report() { # STATE TEXT
  printf '%-9s %s\n' "$1" "$2" 2>/dev/null || interrupt TERM 141
}

work() { # FLAG...: until the queue is empty and no run is left, or an interruption
  local slot busy looked=$SECONDS pause
  exec {pause}<> <(:) # `read` waits on it: a sleep without a process
  for slot in "${!devices[@]}"; do pids[slot]=''; done
  while :; do
    pass_on_signal
    busy=''
    for slot in "${!devices[@]}"; do
      if [ -n "${pids[slot]}" ] && ! kill -0 "${pids[slot]}" 2>/dev/null; then settle "$slot"; fi
      if [ -z "${pids[slot]}" ] && [ -z "$signal" ] && [ "$next" -lt ${#queue[@]} ]; then
        launch "$slot" "$@"
      fi
      busy+=${pids[slot]}
    done
    [ -n "$busy" ] || break
    if ((SECONDS - looked >= EVERY)); then look; looked=$SECONDS; fi
    read -r -t 0.2 -u "$pause" || true
  done
}

launch() { # SLOT FLAG...: start the next run of the queue
  local slot=$1 model seed command
  shift
  read -r model seed <<<"${queue[next++]}"
  compose "$model" "$seed" --resume auto --device "${devices[slot]}" "$@"
  seed=${seed#-}
  labels[slot]="$model${seed:+ seed $seed} on ${devices[slot]}"
  logs[slot]="$folder/${model//\//-}${seed:+_seed$seed}.log"
  echo "== $(date): ${command[*]}" >>"${logs[slot]}"
  set -m # a process group of its own: Ctrl-C reaches it once, by pass_on_signal
  "${command[@]}" >>"${logs[slot]}" 2>&1 </dev/null &
  pids[slot]=$!
  set +m
  since[slot]=$SECONDS
  report started "${labels[slot]}"
}

pass_on_signal() {
  local pid
  [ -n "$forward" ] || return 0
  forward=''
  report stopping "all runs, after saving them; a second signal stops them at once"
  for pid in "${pids[@]}"; do
    [ -z "$pid" ] || kill -s "$signal" "$pid" 2>/dev/null || true
  done
}

settle() { # SLOT: the run there has ended
  local slot=$1 status=0 what
  wait "${pids[slot]}" 2>/dev/null || status=$?
  pids[slot]=''
  what="${labels[slot]} after $((SECONDS - since[slot])) s"
  if [ "$status" -eq 0 ]; then
    finished=$((finished + 1))
    report finished "$what: $({ grep -F " classifies " "${logs[slot]}" || true; } | tail -n 1)"
  elif [ -n "$signal" ] && [ "$status" -gt 128 ]; then
    stopped=$((stopped + 1))
    report stopped "$what"
  else
    failed=$((failed + 1))
    report FAILED "$what, exit code $status: $(last_line "${logs[slot]}") (${logs[slot]})"
  fi
}

last_line() { # LOG
  tail -n 1 "$1" | sed 's/^== .*/(nothing yet)/'
}

look() { # report the progress of each run
  local slot
  for slot in "${!devices[@]}"; do
    [ -z "${pids[slot]}" ] || report running "${labels[slot]}: $(last_line "${logs[slot]}")"
  done
}

conclude() {
  local left=$((${#queue[@]} - next + stopped)) again=''
  [ $((left + failed)) -eq 0 ] || again="; the same command continues with the unfinished runs"
  report ended "$finished finished, $failed failed, $left left$again"
  [ "$code" -eq 0 ] || exit "$code"
  [ "$failed" -eq 0 ] || exit 1
}

main "$@"
