# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
# What run.sh, probe.sh and prestop.sh share: time, HTTP and the state file. Bash alone; no other program is needed.

STATE_FILE=${FLEXAI_STATE_DIR:-/run/flexai}/state
STATE_BYTES=1024
NEVER= # a descriptor from which nothing is ever read
exec {NEVER}<> <(:)

# nap SECONDS
nap() {
    read -r -t "$1" -u "$NEVER" _ || :
}

# clock: seconds since the machine's start → NOW. The time of day may be set while a group serves.
clock() {
    local up
    read -r up _ </proc/uptime
    # shellcheck disable=SC2034  # read by the scripts
    NOW=${up%%.*}
}

# refuse NAME VALUE ALLOWED: one line for a setting that means nothing.
refuse() {
    printf '%s: %s=%q; allowed: %s\n' "${0##*/}" "$1" "$2" "$3" >&2
    REFUSED=1
}
REFUSED=

# number NAME DEFAULT LEAST MOST: the whole number that variable NAME holds, or its default.
number() {
    local value=${!1-}
    value=${value:-$2}
    if [[ ! $value =~ ^[0-9]{1,9}$ ]] || ((10#$value < $3 || 10#$value > $4)); then
        refuse "$1" "$value" "a whole number from $3 to $4, such as $2"
        value=$2
    fi
    printf -v "$1" %d "$((10#$value))"
}

# settings: what all three scripts read from their environment; exits 2 when some of it means nothing.
settings() {
    LWS_WORKER_INDEX=${LWS_WORKER_INDEX:-${HOSTNAME##*-}}
    number LWS_GROUP_SIZE 1 1 4096
    if [[ $LWS_GROUP_SIZE == 1 && ! $LWS_WORKER_INDEX =~ ^[0-9]+$ ]]; then
        LWS_WORKER_INDEX=0 # a Deployment's pod has a name without ordinal
    fi
    number LWS_WORKER_INDEX 0 0 "$((LWS_GROUP_SIZE - 1))"
    number FLEXAI_API_PORT 8000 1 65535
    number FLEXAI_GROUP_PORT 29400 1 65535
    number FLEXAI_START_TIMEOUT 1800 1 604800
    number FLEXAI_GROUP_FAILURE_TIMEOUT 60 2 86400
    number FLEXAI_HEARTBEAT_SECONDS 5 1 3600
    number FLEXAI_MAX_GROUP_RESTARTS 5 0 1000000
    number FLEXAI_RESTART_WINDOW 3600 1 31536000
    number FLEXAI_DRAIN_SECONDS 30 0 86400
    number FLEXAI_PRESTOP_SECONDS 10 0 86400
    number FLEXAI_DEEP_PROBE_SECONDS 0 0 86400
    FLEXAI_HEALTH_PATH=${FLEXAI_HEALTH_PATH:-/health}
    POD_IP=${POD_IP:-127.0.0.1}
    [[ -z $REFUSED ]] || exit 2
    # Two beats may be lost before a member counts as lost.
    HEARTBEAT=$((FLEXAI_GROUP_FAILURE_TIMEOUT / 3))
    ((HEARTBEAT >= 1)) || HEARTBEAT=1
    ((HEARTBEAT <= FLEXAI_HEARTBEAT_SECONDS)) || HEARTBEAT=$FLEXAI_HEARTBEAT_SECONDS
}

# within SECONDS COMMAND…: the command's output → REPLIED. Status 1 where it has not ended in time: no connection that
# hangs may hold up the caller. Its process is never waited for: bash reaps it by itself, and a wait that comes after that
# has been seen to last for ever.
within() {
    local limit=$1 fd asker status
    shift
    exec {fd}< <("$@" 2>&1)
    asker=$!
    IFS= read -r -d '' -t "$limit" -u "$fd" REPLIED
    status=$?
    exec {fd}<&-
    ((status > 128)) || return 0
    kill -KILL "$asker" 2>/dev/null
    return 1
}

# ask METHOD HOST PORT PATH SECONDS [JSON]: HTTP_STATUS (000: no answer in time), HTTP_BODY.
ask() {
    HTTP_STATUS=000 HTTP_BODY=''
    within "$5" exchange "$1" "$2" "$3" "$4" "${6-}" || return 1
    [[ $REPLIED =~ ^HTTP/1\.[01]\ ([0-9]{3}) ]] || return 1
    HTTP_STATUS=${BASH_REMATCH[1]}
    [[ $REPLIED != *$'\r\n\r\n'* ]] || HTTP_BODY=${REPLIED#*$'\r\n\r\n'}
    HTTP_BODY=${HTTP_BODY%$'\n'}
}

exchange() {
    local line host=$2
    [[ $host != *:* ]] || host="[$host]"
    exec 3<>"/dev/tcp/$2/$3" || return
    printf '%s %s HTTP/1.0\r\nHost: %s:%s\r\n' "$1" "$4" "$host" "$3" >&3
    printf 'Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' "${#5}" "$5" >&3
    while IFS= read -r line <&3 || [[ -n $line ]]; do
        printf '%s\n' "$line"
    done
}

# healthy HOST SECONDS: does the engine there answer 200?
healthy() {
    ask GET "$1" "$FLEXAI_API_PORT" "$FLEXAI_HEALTH_PATH" "$2" && [[ $HTTP_STATUS == 200 ]]
}

# write_state KEY=VALUE…: always the same bytes in the same place with one write, so that a reader never finds half of
# it and a disk that has become full takes it all the same. (Bash writes line by line: it is one.)
write_state() {
    local LC_ALL=C IFS=$'\t'
    printf -v RECORD '%-*s' "$((STATE_BYTES - 1))" "$*"
    printf '%s\n' "${RECORD:0:STATE_BYTES-1}" 1<>"$STATE_FILE"
} 2>/dev/null

# read_state: the file → array STATE; status 1 where there is none.
declare -A STATE=()
read_state() {
    local word words
    STATE=()
    [[ -r $STATE_FILE ]] || return 1
    IFS=$'\t' read -r -a words <"$STATE_FILE"
    for word in "${words[@]}"; do
        [[ ! $word =~ ^([a-z_]+)=(.*[^\ ])?\ *$ ]] || STATE[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
    done
    [[ -n ${STATE[phase]-} ]]
}
