# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
# preStop hook of every member of a serving group. All pods of a group are told to end at the same time: a leader waits
# until clients have heard of it, a worker until the leader has answered its last request. Both waits have a bound.
set -uo pipefail
# shellcheck source=/dev/null
. "${BASH_SOURCE[0]%/*}/common.sh"

settings
read_state || exit 0
clock
case ${STATE[role]}/${STATE[phase]} in
leader/serving) nap "$FLEXAI_PRESTOP_SECONDS" ;;
worker/serving)
    until=$((NOW + FLEXAI_PRESTOP_SECONDS + FLEXAI_DRAIN_SECONDS))
    while ((NOW < until)) && healthy "${STATE[leader_ip]}" 5; do
        nap 1
        clock
    done
    ;;
esac
