# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
# One member of a serving group, from the container's start to its end: runs the engine of its role, and sees to it that
# the group serves as a whole or is formed anew as a whole. It is PID 1 of its container. The contract:
# docs/serving-group.md.
set -uo pipefail
HERE=${BASH_SOURCE[0]%/*}
# shellcheck source=/dev/null
. "$HERE/common.sh"

STOP_SECONDS=2   # between SIGTERM and SIGKILL where nothing is worth waiting for
ASK_SECONDS=3    # for an answer within the group
UNKILLABLE_SECONDS=60
RESOLVE_SECONDS=30 # a name server that is tried twice for several search domains needs 20

ROLE='' BARE='' FLEXAI_EPOCH='' PHASE='' SINCE=0 REASON='' RESTARTS=0 WRITTEN=''
ENGINE='' STOPPED_SINCE='' TERMINATED=''
HELPER='' EVENTS='' ORDERS='' EVENT='' HALF=''
PROBER='' PROBE='' NEXT_PROBE=0
FAILURES=()

log() {
    printf '%(%FT%T%z)T run.sh %s %s: %s\n' -1 "$ROLE" "$LWS_WORKER_INDEX" "$*" >&2
}

# enter PHASE WHY: waiting, forming, serving, draining or failed.
enter() {
    clock
    [[ $PHASE == "$1" ]] || { SINCE=$NOW; log "$1${2:+: $2}"; }
    PHASE=$1 WRITTEN=''
    keep_state
}

# keep_state: the state file with a beat of this second; what liveness goes by.
keep_state() {
    clock
    [[ $WRITTEN != "$NOW" ]] || return 0
    WRITTEN=$NOW
    write_state phase="$PHASE" role="$ROLE" since="$SINCE" beat="$NOW" restarts="$RESTARTS" engine="$ENGINE" \
        leader_ip="${FLEXAI_LEADER_IP-}" epoch="${FLEXAI_EPOCH-}" reason="${REASON:0:300}"
}

# give_up WHY: ends the container so that everybody sees why.
give_up() {
    REASON=$1
    stop_engine
    enter failed "$REASON"
    local message=${FLEXAI_TERMINATION_LOG:-/dev/termination-log}
    [[ ! -w $message ]] || printf '%s\n' "$REASON" >"$message"
    exit 1
}

# tick: half a second, or less when there is an event → EVENT. What must go on whatever is being waited for.
tick() {
    local status
    EVENT=''
    if [[ -n $EVENTS ]]; then
        IFS= read -r -t 0.5 -u "$EVENTS" EVENT
        status=$?
        # The time may be up within a line; its rest comes with the next tick.
        EVENT=$HALF$EVENT HALF=''
        if ((status > 128)); then
            HALF=$EVENT EVENT=''
        elif ((status > 0)); then
            EVENTS='' EVENT="lost $FLEXAI_EPOCH the group server has ended"
        fi
    else
        nap 0.5
    fi
    keep_state
    [[ -z $TERMINATED ]] || leave
}

# ---- the engine and all its processes ----

# start_engine FRAGMENT: in a session of its own. The shell around it outlives SIGTERM, so that its end is the engine's.
start_engine() {
    # shellcheck disable=SC2016  # expanded by that shell
    local words=("$BASH" -c 'trap : TERM INT; . "$1"' flexai-engine "$HERE/$1")
    export FLEXAI_LEADER_IP FLEXAI_EPOCH LWS_WORKER_INDEX LWS_GROUP_SIZE POD_IP
    STOPPED_SINCE=''
    if type -P setsid >/dev/null; then
        { close_ours; exec setsid "${words[@]}"; } &
    else
        set -m # a process group at least
        { close_ours; exec "${words[@]}"; } &
        set +m
    fi
    ENGINE=$!
}

close_ours() {
    local fd
    for fd in $NEVER $EVENTS $ORDERS $PROBE; do
        exec {fd}>&-
    done
}

# engine_scan: → ENGINE_PIDS, and how many of them are stopped (SIGSTOP, a debugger, a frozen cgroup) → STOPPED.
# The engine's are: its session or process group, what descends from these, and, where we are PID 1, every orphan: engines
# start daemons with sessions of their own. What comes in from outside (kubectl exec, probes) has no parent here.
engine_scan() {
    local file line pid state ppid pgrp session rest grown=1
    local -A parent=() mine=() states=()
    ENGINE_PIDS=() STOPPED=0
    [[ -n $ENGINE ]] || return 0
    for file in /proc/[0-9]*/stat; do
        line=''
        { IFS= read -r -d '' line <"$file"; } 2>/dev/null
        rest=${line##*) } pid=${line%% *}
        state=${rest%% *} rest=${rest#* }
        ppid=${rest%% *} rest=${rest#* }
        pgrp=${rest%% *} rest=${rest#* }
        session=${rest%% *}
        [[ -n $pid && $state != [ZX] && $pid != "$$" && $pid != "$HELPER" && $pid != "$PROBER" ]] || continue
        parent[$pid]=$ppid states[$pid]=$state
        if [[ $session == "$ENGINE" || $pgrp == "$ENGINE" || ($$ == 1 && $ppid == 1) ]]; then
            mine[$pid]=1
        fi
    done
    while ((grown)); do
        grown=0
        for pid in "${!parent[@]}"; do
            if [[ -z ${mine[$pid]-} && -n ${mine[${parent[$pid]}]-} ]]; then
                mine[$pid]=1 grown=1
            fi
        done
    done
    ENGINE_PIDS=("${!mine[@]}")
    for pid in "${ENGINE_PIDS[@]}"; do
        [[ ${states[$pid]} != [Tt] ]] || ((STOPPED += 1))
    done
}

signal_engine() {
    ((${#ENGINE_PIDS[@]} == 0)) || kill "-$1" "${ENGINE_PIDS[@]}" 2>/dev/null
}

# engine_gone SECONDS: waits until the engine has no process left.
engine_gone() {
    local until
    clock
    until=$((NOW + $1))
    while engine_scan && ((${#ENGINE_PIDS[@]} > 0)); do
        clock
        ((NOW < until)) || return 1
        nap 0.1
        keep_state
    done
}

# stop_engine: SIGTERM, SIGKILL, and none of its processes is left; otherwise this container can't be used again.
stop_engine() {
    local waited=0
    [[ -n $ENGINE ]] || return 0
    engine_scan
    signal_engine TERM
    signal_engine CONT
    engine_gone "$STOP_SECONDS"
    until signal_engine KILL; engine_gone 1; do
        if (((waited += 1) >= UNKILLABLE_SECONDS)); then
            ENGINE=''
            give_up "processes of the engine outlive SIGKILL: ${ENGINE_PIDS[*]}; the node needs a look"
        fi
    done
    ENGINE=''
}

# drain_engine: its main process is told to end and may finish what it has begun; the others serve it until then.
drain_engine() {
    local comm='' pid until main=()
    { read -r comm <"/proc/$ENGINE/comm"; } 2>/dev/null
    if [[ $comm == bash ]]; then
        engine_scan
        for pid in "${ENGINE_PIDS[@]}"; do
            child_of "$pid" "$ENGINE" && main+=("$pid")
        done
    else
        main=("$ENGINE") # the fragment has ended in an exec
    fi
    ((${#main[@]} == 0)) || kill -TERM "${main[@]}" 2>/dev/null
    clock
    until=$((NOW + FLEXAI_DRAIN_SECONDS))
    while kill -0 "$ENGINE" 2>/dev/null; do
        if ((NOW >= until)); then
            log "not drained within FLEXAI_DRAIN_SECONDS=$FLEXAI_DRAIN_SECONDS"
            break
        fi
        nap 0.1
        keep_state
    done
    stop_engine
}

child_of() {
    local line='' rest
    { IFS= read -r -d '' line <"/proc/$1/stat"; } 2>/dev/null
    rest=${line##*) } rest=${rest#* }
    [[ ${rest%% *} == "$2" ]]
}

# engine_ended: → REASON
engine_ended() {
    ! kill -0 "$ENGINE" 2>/dev/null || return 1
    wait "$ENGINE"
    REASON="its engine has ended with status $?"
}

# engine_stopped: for longer than a group may be without a member? Asked once a heartbeat. → REASON
engine_stopped() {
    engine_scan
    if ((STOPPED == 0)); then
        STOPPED_SINCE=''
        return 1
    fi
    STOPPED_SINCE=${STOPPED_SINCE:-$NOW}
    ((NOW - STOPPED_SINCE >= FLEXAI_GROUP_FAILURE_TIMEOUT)) || return 1
    REASON="$STOPPED of its engine's processes are stopped (state T) for $((NOW - STOPPED_SINCE)) s"
}

# ---- the leader ----

# listen: starts the group server, unless it runs.
listen() {
    local from to
    [[ -z $HELPER ]] || { [[ -n $EVENTS ]] && kill -0 "$HELPER" 2>/dev/null && return 0; }
    hang_up
    # Descriptors of our own: bash forgets the coprocess' when that ends, in the middle of whatever uses them.
    coproc GROUP { exec {NEVER}>&-; exec python3 "$HERE/group.py" "$POD_IP" "$FLEXAI_GROUP_PORT" \
        "$LWS_GROUP_SIZE" "$FLEXAI_GROUP_FAILURE_TIMEOUT"; }
    HELPER=$GROUP_PID from=${GROUP[0]} to=${GROUP[1]}
    exec {EVENTS}<&"$from" {ORDERS}>&"$to" {from}<&- {to}>&-
}

hang_up() {
    [[ -z $EVENTS ]] || exec {EVENTS}<&-
    [[ -z $ORDERS ]] || exec {ORDERS}>&-
    # Its port is free once it is gone.
    while [[ -n $HELPER ]] && kill -KILL "$HELPER" 2>/dev/null; do nap 0.1; done
    EVENTS='' ORDERS='' HELPER='' HALF=''
}

# order WORDS: to the group server; one that is gone is noticed by its events.
order() {
    [[ -z $ORDERS ]] || printf '%s\n' "$*" >&"$ORDERS"
} 2>/dev/null

# gather: begins an epoch and waits until every member has said that it runs no engine. Then nothing of an older epoch
# can meet the new one.
gather() {
    enter waiting "for $((LWS_GROUP_SIZE - 1)) other members"
    if [[ -n $BARE ]]; then
        # Members see that the rendezvous is closed; nobody can tell us that they have.
        while ((NOW - SINCE <= 2 * HEARTBEAT + ASK_SECONDS)); do tick; done
        return
    fi
    listen
    order gather "$FLEXAI_EPOCH"
    while tick; do
        case $EVENT in
        "gathered $FLEXAI_EPOCH") return ;;
        "missing $FLEXAI_EPOCH "*)
            REASON="members not there: ${EVENT##*"$FLEXAI_EPOCH "}"
            log "$REASON"
            ;;
        "lost $FLEXAI_EPOCH "*) # the server itself; a python3 that can't run it must not be tried for ever
            REASON=${EVENT#*"$FLEXAI_EPOCH "}
            spend_restart
            listen
            order gather "$FLEXAI_EPOCH"
            ;;
        deaf*) give_up "FLEXAI_GROUP_PORT: cannot listen on ${EVENT#deaf }; free the port or name another" ;;
        esac
        ((NOW - SINCE < FLEXAI_START_TIMEOUT)) ||
            give_up "$REASON after FLEXAI_START_TIMEOUT=$FLEXAI_START_TIMEOUT s; see whether their pods are scheduled"
    done
}

# bound PORT: does somebody here listen on it? Asked of the kernel: a rendezvous may not like callers that say nothing.
bound() {
    local file address state hex
    printf -v hex ':%04X' "$1"
    for file in /proc/net/tcp /proc/net/tcp6; do
        [[ -r $file ]] || continue
        while read -r _ address _ state _; do
            [[ $state != 0A || $address != *"$hex" ]] || return 0
        done <"$file"
    done
    return 1
}

# callers PORT: other addresses that hold a connection to PORT here → CALLERS.
callers() {
    local file address remote state hex
    local -A seen=()
    printf -v hex ':%04X' "$1"
    for file in /proc/net/tcp /proc/net/tcp6; do
        [[ -r $file ]] || continue
        while read -r _ address remote state _; do
            if [[ $state == 01 && $address == *"$hex" && ${remote%:*} != "${address%:*}" ]]; then
                seen[${remote%:*}]=1
            fi
        done <"$file"
    done
    CALLERS=${#seen[@]}
}

# deep_probe: one token, from outside → "ok", or what came instead. An answer that blames the question proves an engine.
deep_probe() {
    local model=''
    if ! ask GET "$POD_IP" "$FLEXAI_API_PORT" /v1/models "$FLEXAI_GROUP_FAILURE_TIMEOUT"; then
        printf 'no answer to /v1/models within %s s' "$FLEXAI_GROUP_FAILURE_TIMEOUT"
        return
    fi
    [[ ! $HTTP_BODY =~ \"id\":\ ?\"([^\"]+)\" ]] || model=${BASH_REMATCH[1]}
    if ! ask POST "$POD_IP" "$FLEXAI_API_PORT" /v1/completions "$FLEXAI_GROUP_FAILURE_TIMEOUT" \
        "{\"model\": \"$model\", \"prompt\": \"1\", \"max_tokens\": 1}"; then
        printf 'no token within %s s' "$FLEXAI_GROUP_FAILURE_TIMEOUT"
    elif ((10#$HTTP_STATUS >= 500)); then
        printf 'status %s instead of a token' "$HTTP_STATUS"
    else
        printf ok
    fi
}

# probe_failed: starts the deep probe when it is due, and hears it out without waiting. → REASON
probe_failed() {
    local verdict=''
    if [[ -z $PROBE ]]; then
        ((FLEXAI_DEEP_PROBE_SECONDS > 0 && NOW >= NEXT_PROBE)) || return 1
        exec {PROBE}< <(deep_probe)
        PROBER=$!
        return 1
    fi
    read -r -t 0 -u "$PROBE" || return 1
    IFS= read -r -u "$PROBE" verdict
    end_probe
    [[ $verdict != ok ]] || return 1
    REASON="deep probe: $verdict"
}

end_probe() {
    NEXT_PROBE=$((NOW + FLEXAI_DEEP_PROBE_SECONDS))
    [[ -n $PROBE ]] || return 0
    exec {PROBE}<&-
    kill -KILL "$PROBER" 2>/dev/null
    PROBE='' PROBER=''
}

# lead_once: one epoch, from the engine's start until something fails → REASON
lead_once() {
    local opened=1 joined=1 next=0 unhealthy_since='' most=0 fewer=0
    if ((LWS_GROUP_SIZE > 1)) && [[ -z $BARE ]]; then opened='' joined=''; fi
    start_engine leader.sh
    enter forming "epoch $FLEXAI_EPOCH"
    while tick; do
        case $EVENT in
        "lost $FLEXAI_EPOCH "*)
            REASON=${EVENT#*"$FLEXAI_EPOCH "}
            return
            ;;
        "joined $FLEXAI_EPOCH") joined=1 ;;
        esac
        ! engine_ended || return
        if [[ -z $opened ]] && { bound "$FLEXAI_RENDEZVOUS_PORT" || healthy "$POD_IP" "$ASK_SECONDS"; }; then
            order open # or it serves without a rendezvous: a command of the user's own
            opened=1
        fi
        if [[ $PHASE == forming ]]; then
            if [[ -n $joined ]] && healthy "$POD_IP" "$ASK_SECONDS"; then
                REASON=''
                enter serving
                order serving
                end_probe
            elif ((NOW - SINCE >= FLEXAI_START_TIMEOUT)); then
                REASON="not serving within FLEXAI_START_TIMEOUT=$FLEXAI_START_TIMEOUT s"
                return
            fi
        else
            ! probe_failed || return
        fi
        ((NOW >= next)) || continue
        next=$((NOW + HEARTBEAT))
        ! engine_stopped || return
        [[ $PHASE == serving ]] || continue
        if healthy "$POD_IP" "$ASK_SECONDS"; then
            unhealthy_since=''
        else
            unhealthy_since=${unhealthy_since:-$NOW}
            if ((NOW - unhealthy_since >= FLEXAI_GROUP_FAILURE_TIMEOUT)); then
                REASON="$FLEXAI_HEALTH_PATH has not said 200 for $((NOW - unhealthy_since)) s (last: $HTTP_STATUS)"
                return
            fi
        fi
        if [[ -n $BARE ]]; then
            callers "$FLEXAI_RENDEZVOUS_PORT"
            ((CALLERS <= most)) || most=$CALLERS
            fewer=$((CALLERS < most ? fewer + 1 : 0))
            if ((fewer >= 2)); then
                REASON="only $CALLERS of $most members hold their connection to the rendezvous"
                return
            fi
        fi
    done
}

# spend_restart: counts the failure; the one too many ends the container.
spend_restart() {
    local at recent=()
    clock
    for at in "${FAILURES[@]}"; do
        ((NOW - at >= FLEXAI_RESTART_WINDOW)) || recent+=("$at")
    done
    FAILURES=("${recent[@]}" "$NOW")
    if ((${#FAILURES[@]} > FLEXAI_MAX_GROUP_RESTARTS)); then
        give_up "restart budget used up ($FLEXAI_MAX_GROUP_RESTARTS in $FLEXAI_RESTART_WINDOW s); last: $REASON"
    fi
    ((RESTARTS += 1))
    log "forms the group anew (${#FAILURES[@]} of $FLEXAI_MAX_GROUP_RESTARTS in $FLEXAI_RESTART_WINDOW s): $REASON"
}

lead() {
    FLEXAI_LEADER_IP=$POD_IP
    while :; do
        read -r FLEXAI_EPOCH </proc/sys/kernel/random/uuid
        ((LWS_GROUP_SIZE == 1)) || gather
        lead_once
        order close # before all else: nobody joins what is about to end
        end_probe
        stop_engine
        spend_restart
    done
}

# ---- a worker ----

# resolve: LWS_LEADER_ADDRESS → FLEXAI_LEADER_IP, of our own address' family where it has several. A name server that
# takes its time holds up nothing else.
resolve() {
    local fd asker status part text='' line address first='' alike='' turn family='*.*'
    if [[ $LWS_LEADER_ADDRESS =~ ^[0-9.]+$ || $LWS_LEADER_ADDRESS == *:* ]] || ! type -P getent >/dev/null; then
        # Bash calls by name where it has to; engines of some versions can't.
        FLEXAI_LEADER_IP=$LWS_LEADER_ADDRESS
        return
    fi
    [[ $POD_IP != *:* ]] || family='*:*'
    exec {fd}< <(exec getent ahosts "$LWS_LEADER_ADDRESS" 2>/dev/null)
    asker=$!
    for ((turn = 0; turn < 2 * RESOLVE_SECONDS; turn++)); do
        IFS= read -r -d '' -t 0.5 -u "$fd" part
        status=$?
        text+=$part
        ((status > 128)) || break
        keep_state
        [[ -z $TERMINATED ]] || break
    done
    exec {fd}<&-
    ((status <= 128)) || kill -KILL "$asker" 2>/dev/null
    while [[ $text == *$'\n'* ]]; do
        line=${text%%$'\n'*} text=${text#*$'\n'}
        address=${line%%[[:space:]]*} first=${first:-$address}
        # shellcheck disable=SC2053  # a pattern
        [[ $address != $family ]] || alike=${alike:-$address}
    done
    [[ -n $first ]] && FLEXAI_LEADER_IP=${alike:-$first}
}

# knock HOST PORT: → KNOCK, open, refused (nobody listens: the leader's engine is gone) or silent.
knock() {
    within "$ASK_SECONDS" try_connection "$1" "$2" || { KNOCK=silent; return; }
    case $REPLIED in
    open*) KNOCK=open ;;
    *refused*) KNOCK=refused ;;
    *) KNOCK=silent ;;
    esac
}

try_connection() {
    local LC_ALL=C
    { : 3<>"/dev/tcp/$1/$2"; } && printf open
}

# call METHOD PATH QUERY: asks the leader's group server as this launch of this member.
call() {
    ask "$1" "$FLEXAI_LEADER_IP" "$FLEXAI_GROUP_PORT" "$2?idx=$LWS_WORKER_INDEX&id=$LAUNCH${3:+&$3}" "$ASK_SECONDS"
}

# FELL_OUT: without epochs, a rendezvous that is open may still be the one that we fell out of; the next is seen to be closed
# before it opens. What a container was in when it was killed, its state file still says.
FELL_OUT=''

# join: waits for the leader; has its address and its epoch then. The name server is asked again only where nobody answers:
# a member that asks rarely counts as lost.
join() {
    local why
    FLEXAI_EPOCH=''
    read -r LAUNCH </proc/sys/kernel/random/uuid
    enter waiting "for the leader $LWS_LEADER_ADDRESS"
    while :; do
        if [[ -z ${FLEXAI_LEADER_IP-} ]] && ! resolve; then
            why="$LWS_LEADER_ADDRESS has no address"
        elif [[ -n $BARE ]]; then
            knock "$FLEXAI_LEADER_IP" "$FLEXAI_RENDEZVOUS_PORT"
            why="$FLEXAI_LEADER_IP port $FLEXAI_RENDEZVOUS_PORT is $KNOCK${FELL_OUT:+, of the epoch we fell out of}"
            case $KNOCK in
            open) [[ -n $FELL_OUT ]] || return 0 ;;
            refused) FELL_OUT='' ;;
            esac
            [[ $KNOCK == open ]] || FLEXAI_LEADER_IP=''
        else
            call GET /epoch
            case $HTTP_STATUS in
            200)
                FLEXAI_EPOCH=$HTTP_BODY
                return 0
                ;;
            503) why="the leader at $FLEXAI_LEADER_IP is $HTTP_BODY" ;;
            000)
                why="nobody answers at $FLEXAI_LEADER_IP port $FLEXAI_GROUP_PORT"
                FLEXAI_LEADER_IP=''
                ;;
            *) why="$FLEXAI_LEADER_IP port $FLEXAI_GROUP_PORT says $HTTP_STATUS $HTTP_BODY" ;;
            esac
        fi
        [[ $why == "$REASON" ]] || log "$why"
        REASON=$why
        tick
        ((NOW - SINCE < FLEXAI_START_TIMEOUT)) || give_up "$why after FLEXAI_START_TIMEOUT=$FLEXAI_START_TIMEOUT s"
    done
}

# follow_once: one epoch, from the engine's start until it is over → REASON
follow_once() {
    local next=0 heard
    start_engine worker.sh
    enter forming "epoch ${FLEXAI_EPOCH:-of $FLEXAI_LEADER_IP}"
    REASON=''
    heard=$NOW
    while tick; do
        if engine_ended; then
            report_down "$REASON"
            return
        fi
        ((NOW >= next)) || continue
        next=$((NOW + HEARTBEAT))
        if engine_stopped; then
            report_down "$REASON"
            return
        fi
        if [[ -n $BARE ]]; then
            hear_bare
        else
            hear
        fi
        case $? in
        0) heard=$NOW ;;
        2) return ;;
        esac
        if ((NOW - heard >= FLEXAI_GROUP_FAILURE_TIMEOUT)); then
            REASON="the leader at $FLEXAI_LEADER_IP was not heard of for $((NOW - heard)) s"
            return
        fi
    done
}

# hear: one beat to the leader. Status 0: it goes on; 1: not heard; 2: this epoch is over → REASON
hear() {
    call GET /beat "epoch=$FLEXAI_EPOCH"
    case $HTTP_STATUS in
    200) [[ $HTTP_BODY != serving || $PHASE == serving ]] || enter serving ;;
    409) REASON='the leader has ended the epoch'; return 2 ;;
    *) resolve; return 1 ;; # it may live elsewhere now
    esac
}

# hear_bare: the same without group server: as long as the leader's engine listens, its epoch lasts.
hear_bare() {
    knock "$FLEXAI_LEADER_IP" "$FLEXAI_RENDEZVOUS_PORT"
    case $KNOCK in
    open) [[ $PHASE == serving ]] || ! healthy "$FLEXAI_LEADER_IP" "$ASK_SECONDS" || enter serving ;;
    refused) REASON="nobody listens on the leader's rendezvous any more"; return 2 ;;
    *) return 1 ;;
    esac
}

# report_down WHY: the leader need not wait for a silence then. It may be gone itself.
report_down() {
    [[ -n $BARE ]] || call POST /down "epoch=$FLEXAI_EPOCH&why=${1//[^a-zA-Z0-9.,:()=\'-]/+}" || :
}

follow() {
    while :; do
        join
        follow_once
        log "stops its engine: $REASON"
        stop_engine
        FELL_OUT=1
        ((RESTARTS += 1))
    done
}

# ---- the process ----

# leave: SIGTERM. A leader drains; a worker's group has no more use for it once the leader is gone (prestop.sh waits).
leave() {
    trap '' TERM INT
    local phase=$PHASE
    REASON='told to stop'
    enter draining
    if [[ $ROLE == leader && $phase == serving ]]; then
        drain_engine
    else
        [[ $ROLE == leader || -z $ENGINE ]] || report_down "$REASON"
        stop_engine
    fi
    log ended
    exit 0
}

# roles: what the settings make of this member; exits 2 where they contradict each other.
roles() {
    local default
    FLEXAI_BACKEND=${FLEXAI_BACKEND:-mp}
    case $FLEXAI_BACKEND in
    mp) default=29501 ;;
    ray) default=6379 ;;
    dp) default=13345 ;;
    sglang) default=20000 ;;
    none) default=29501 ;;
    *) refuse FLEXAI_BACKEND "$FLEXAI_BACKEND" 'mp, ray, dp, sglang, none'; default=29501 ;;
    esac
    number FLEXAI_RENDEZVOUS_PORT "$default" 1 65535
    settings
    if ((LWS_GROUP_SIZE > 1)); then
        [[ $FLEXAI_BACKEND != none ]] || refuse FLEXAI_BACKEND none "none for LWS_GROUP_SIZE=1 only"
        [[ -n ${LWS_LEADER_ADDRESS-} ]] || refuse LWS_LEADER_ADDRESS '' "the leader's name or address"
    fi
    [[ -z $REFUSED ]] || exit 2
    ROLE=worker
    ((LWS_WORKER_INDEX > 0)) || ROLE=leader
}

main() {
    roles
    if [[ -r $HERE/$ROLE.env ]]; then
        # shellcheck source=/dev/null
        . "$HERE/$ROLE.env"
    fi
    if [[ ! -r $HERE/$ROLE.sh ]]; then
        printf 'run.sh: %s: no such file; it has to hold the command of the %s\n' "$HERE/$ROLE.sh" "$ROLE" >&2
        exit 2
    fi
    if ((LWS_GROUP_SIZE > 1)) && ! type -P python3 >/dev/null; then BARE=1; fi
    trap 'TERMINATED=1' TERM INT
    trap : PIPE # an order to a group server that has died
    # shellcheck disable=SC2153  # common.sh's
    if read_state && [[ ${STATE[phase]} == @(forming|serving) ]]; then FELL_OUT=1; fi
    PHASE=waiting
    clock
    SINCE=$NOW
    if ! keep_state; then
        printf 'run.sh: %s: cannot be written; probes would know nothing: free the disk or mount another\n' "$STATE_FILE" >&2
        exit 1
    fi
    log "one of $LWS_GROUP_SIZE, backend $FLEXAI_BACKEND, pid $$${BARE:+, no python3: without epochs}"
    case $ROLE in
    leader) lead ;;
    worker) follow ;;
    esac
}

main
