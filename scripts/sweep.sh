#!/usr/bin/env bash
# Work off a queue of runs, every model with every seed, over the devices of this machine.
#
#   scripts/sweep.sh MODELS SEEDS [flags]
#   scripts/sweep.sh "plain feedback" 1,2,3 --epochs 20
#   scripts/sweep.sh plain,feedback "1 2" --config 'configs/2022-{model}.toml'
#
# MODELS, SEEDS   one argument each, names separated by spaces or commas; SEEDS `-` stands for one
#                 run a model, with the seed that the flags or the defaults give it
# flags           those of python -m rsnn_fmnist; {model} in them becomes the model's name
# DEVICES         variable: "cuda:0 cuda:1" or "cpu cpu"; a device named twice takes two runs at
#                 once. Default: every GPU, else one `cpu` a core
# PYTHON          variable: the interpreter (default: python)
#
# Each run writes to <output-dir>/logs/<model>_seed<seed>.log. Ctrl-C or SIGTERM stops all of them
# with their checkpoints; the same command then goes on, skipping what is finished. Exit code: 0;
# 1 when a run failed (the others go on); 2 for a mistake in the command; 130 or 143 when stopped.
#
# Left out: several machines (slurm_array.sh), and one run on several devices (torchrun).
set -euo pipefail

PYTHON=${PYTHON:-python}
EVERY=30 # seconds between two looks at the runs' logs

devices=() queue=() folder=                     # where, what (MODEL SEED), and the logs' folder
pids=() labels=() logs=() since=()              # of the run on each device
next=0 finished=0 failed=0 stopped=0            # runs
signal='' code=0 forward=''                     # a stop that was asked for; still to be passed on

main() {
  case ${1-} in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit 0 ;; esac
  command -v "$PYTHON" >/dev/null || refuse "$PYTHON: not found; activate the environment, or set PYTHON"
  [ $# -ge 2 ] || refuse "needs MODELS and SEEDS, one argument each (--help)"
  local word models=() seeds=() model seed
  for word in "$1" "$2"; do
    case $word in -?*) refuse "$word in the place of MODELS or SEEDS, which come first (--help)" ;; esac
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
  trap 'ask INT 130' INT
  trap 'ask TERM 143' TERM
  trap 'ask TERM 129' HUP
  trap '' PIPE # nobody reads the terminal's lines any more: `tell` stops the runs
  work "$@"
  conclude
}

refuse() { # MESSAGE
  echo "${0##*/}: $1" >&2
  exit 2
}

split() { # ARRAY TEXT: the words of the text, parted by spaces, commas or newlines
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
    refuse "${flag%%=*}: leave it out; models, seeds, devices and resuming are the queue's (--help)"
  done
}

compose() { # MODEL SEED FLAG...: put a run's words into `command`, without device and resume
  local model=$1 seed=$2
  shift 2
  command=("$PYTHON" -m rsnn_fmnist --model "$model")
  [ "$seed" = - ] || command+=(--seed "$seed")
  command+=("${@//\{model\}/$model}")
}

prepare() { # FLAG...: fetch the pictures once, and learn where runs are written
  local job model seed said status=0 command
  for job in "${queue[@]}"; do
    read -r model seed <<<"$job"
    [ "$seed" = "${queue[0]##* }" ] || break # one job a model is enough
    compose "$model" "$seed" "$@"
    status=0
    said=$("${command[@]}" --prepare-only) || status=$?
    [ "$status" -lt 128 ] || exit "$status"
    [ "$status" -ne 0 ] || break # a model that fails here fails alone, in the queue
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

ask() { # SIGNAL CODE: what a trap does; the loop passes it on
  signal=$1 code=$2 forward=yes
}

tell() { # WHAT TEXT
  printf '%-9s %s\n' "$1" "$2" 2>/dev/null || ask TERM 141
}

work() { # FLAG...: until the queue is empty and no run is left, or a stop is asked for
  local slot busy looked=$SECONDS pause
  exec {pause}<> <(:) # never to be read from: a sleep that is no process, which a signal would end
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
  tell started "${labels[slot]}"
}

pass_on_signal() {
  local pid
  [ -n "$forward" ] || return 0
  forward=''
  tell stopping "all runs, with their checkpoints; a second time: at once"
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
    tell finished "$what: $({ grep -F " classifies " "${logs[slot]}" || true; } | tail -n 1)"
  elif [ -n "$signal" ] && [ "$status" -gt 128 ]; then
    stopped=$((stopped + 1))
    tell stopped "$what"
  else
    failed=$((failed + 1))
    tell FAILED "$what, exit code $status: $(last_line "${logs[slot]}") (${logs[slot]})"
  fi
}

last_line() { # LOG
  tail -n 1 "$1" | sed 's/^== .*/(nothing yet)/'
}

look() { # tell how far each run is
  local slot
  for slot in "${!devices[@]}"; do
    [ -z "${pids[slot]}" ] || tell running "${labels[slot]}: $(last_line "${logs[slot]}")"
  done
}

conclude() {
  local left=$((${#queue[@]} - next + stopped)) again=''
  [ $((left + failed)) -eq 0 ] || again="; the same command goes on with what is not finished"
  tell ended "$finished finished, $failed failed, $left left$again"
  [ "$code" -eq 0 ] || exit "$code"
  [ "$failed" -eq 0 ] || exit 1
}

main "$@"
