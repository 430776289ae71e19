# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
# The exec probes of every member of a serving group: startup, readiness or liveness. Status 0: yes; 1: no, and why.
# What they go by is run.sh's state file, for a group is formed anew while its containers live on.
set -uo pipefail
# shellcheck source=/dev/null
. "${BASH_SOURCE[0]%/*}/common.sh"

ASK_SECONDS=4
# run.sh writes a beat each second, and is never busy for as long as this.
STALE_SECONDS=60

no() {
    printf '%s: %s\n' "$QUESTION" "$*"
    exit 1
}

# startup: a leader serves; a worker has joined, for the group may load its weights longer than anything else takes.
startup() {
    case ${STATE[role]}/${STATE[phase]} in
    leader/serving | worker/forming | worker/serving) ;;
    *) no "${STATE[phase]}${STATE[reason]:+: ${STATE[reason]}}" ;;
    esac
}

# readiness: the same for all members, so that N ready pods are a group that serves.
readiness() {
    [[ ${STATE[phase]} == serving ]] || no "${STATE[phase]}${STATE[reason]:+: ${STATE[reason]}}"
    healthy "${STATE[leader_ip]}" "$ASK_SECONDS" ||
        no "$FLEXAI_HEALTH_PATH of the leader at ${STATE[leader_ip]} says $HTTP_STATUS"
}

# liveness: what run.sh itself would not mend.
liveness() {
    local silent_s phase_s beat=${STATE[beat]} since=${STATE[since]}
    clock
    silent_s=$((NOW - beat)) phase_s=$((NOW - since))
    ((silent_s <= STALE_SECONDS)) || no "run.sh has not been heard of for $silent_s s"
    case ${STATE[phase]} in
    serving)
        [[ ${STATE[role]} == worker ]] || healthy "$POD_IP" "$ASK_SECONDS" ||
            no "$FLEXAI_HEALTH_PATH says $HTTP_STATUS"
        ;;
    waiting | forming)
        ((phase_s <= FLEXAI_START_TIMEOUT + STALE_SECONDS)) || no "${STATE[phase]} for $phase_s s"
        ;;
    esac
}

QUESTION=${1-}
settings
case $QUESTION in
startup | readiness | liveness)
    read_state || no "no state in $STATE_FILE: run.sh has not begun"
    "$QUESTION"
    ;;
*)
    printf 'probe.sh: %q; allowed: startup, readiness, liveness\n' "$QUESTION" >&2
    exit 2
    ;;
esac
