#!/usr/bin/env bash
# Train the three models at once, each on a device of its own; run again, it resumes them.
#
#   scripts/train_all.sh [flags]
#   scripts/train_all.sh --amp --tb
#   DEVICES="cuda:0 cuda:1 cuda:2" scripts/train_all.sh --config 'configs/2022-{model}.toml'
#
# Flags, variables, logs, interruption and exit codes are those of sweep.sh. With fewer devices than
# models, the others wait until one is free.
set -euo pipefail

case ${1-} in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit 0 ;; esac
exec "$(dirname -- "$0")/sweep.sh" "plain feedback stateful-synapse" - "$@"
