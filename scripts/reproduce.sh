#!/usr/bin/env bash
# Train every run behind README's result, copy their records and write the report.
#
#   scripts/reproduce.sh [flags]
#   scripts/reproduce.sh --data-path ~/pictures
#   RUNS=/tmp/trial RECORDS=/tmp/records scripts/reproduce.sh --dataset synthetic --epochs 1
#
# Three queues of the three models with every seed: the default settings, the 2022 edition
# (configs/2022-*.toml), and the default settings with --val-size 5000. After an interruption or a
# failed run, the same command continues; finished runs are skipped.
#
# flags     passed to every run; not those that the queues set
# SEEDS     variable: the seeds (default: 2020 to 2024)
# RUNS      variable: where runs are written (default: runs/reproduce in this clone)
# RECORDS   variable: the folder to copy config.toml, metrics.jsonl and environment.json of every
#           run to, and latest.pt of the first seed with the default settings; the report is
#           written to report/ in it (default: runs/reference in this clone)
# DEVICES, PYTHON   variables: as in sweep.sh, which runs the queues
#
# Exit code: 0; 1 if a run failed (records and report are written nevertheless); 2 for a mistake in
# the command; 130, 143 or 129 if interrupted.
set -euo pipefail

case ${1-} in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit 0 ;; esac

scripts=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
PYTHON=${PYTHON:-python}
MODELS='plain feedback stateful-synapse'
SEEDS=${SEEDS:-2020 2021 2022 2023 2024}
RUNS=${RUNS:-${scripts%/*}/runs/reproduce}
RECORDS=${RECORDS:-${scripts%/*}/runs/reference}
child='' failed=0

main() {
  local pictures=()
  read_flags "$@"
  trap 'pass_on INT' INT
  trap 'pass_on TERM' TERM
  trap 'pass_on HUP' HUP
  run_queue "default settings" "$@"
  run_queue "2022 edition" --config "${scripts%/*}/configs/2022-{model}.toml" "$@"
  run_queue "5,000 pictures held out" --val-size 5000 "$@"
  copy_records
  copy_weights "$@"
  "$PYTHON" -m rsnn_fmnist.report "$RUNS" --memory --out "$RECORDS/report" ${pictures[@]+"${pictures[@]}"}
  exit "$failed"
}

read_flags() { # FLAG...: refuse those that the queues set; collect the report's in `pictures`
  local previous='' flag
  for flag in "$@"; do
    case $flag in
      --output-dir* | --run-name* | --config* | --val-size*)
        echo "${0##*/}: ${flag%%=*}: leave it out; the queues set it (--help)" >&2
        exit 2 ;;
      --data-path=* | --no-download) pictures+=("$flag") ;;
    esac
    [ "$previous" != --data-path ] || pictures+=(--data-path "$flag")
    previous=$flag
  done
}

# shellcheck disable=SC2329 # the traps call it
pass_on() { # SIGNAL
  [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null || true
}

run_queue() { # TITLE FLAG...
  local status
  echo "== $1"
  shift
  set -m # a process group of its own: Ctrl-C reaches it once, through pass_on
  "$scripts/sweep.sh" "$MODELS" "$SEEDS" --output-dir "$RUNS" "$@" &
  child=$!
  set +m
  while :; do # a signal ends `wait`, not the queue
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  child=''
  if [ "$status" -gt 1 ]; then exit "$status"; fi
  failed=$((failed | status))
}

copy_records() {
  local metrics run
  for metrics in "$RUNS"/*/metrics.jsonl; do
    [ -f "$metrics" ] || continue # none at all
    run=${metrics%/*}
    mkdir -p "$RECORDS/${run##*/}"
    cp "$run"/{config.toml,metrics.jsonl,environment.json} "$RECORDS/${run##*/}"
  done
}

copy_weights() { # FLAG...: of the default settings with the first seed
  local model seed said run
  read -r seed _ <<<"${SEEDS//,/ }"
  for model in $MODELS; do
    # UTF-8 both ways gives the directory that the program names byte by byte
    said=$(PYTHONUTF8=1 PYTHONIOENCODING=utf-8 "$PYTHON" -m rsnn_fmnist --model "$model" --seed "$seed" --output-dir "$RUNS" "$@" --prepare-only)
    run=$(sed -n 's/^run  *//p' <<<"$said")
    if [ -f "$run/latest.pt" ]; then cp "$run/latest.pt" "$RECORDS/${run##*/}"; fi
  done
}

main "$@"
