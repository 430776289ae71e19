#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Registers the tasks of this host, one `task` line each; edit them. It can be run twice: the same task again
# changes nothing. Upstream's example gives the tasks of one chip 20 slots in all, its text allows 10 (quota):
# the text is what flexnpud checks.
set -u
: "${FLEXNPUD:=http://127.0.0.1:8080}"
: "${FLEXNPUD_TOKEN_FILE:=}"
failed=0

# task ID ENTITY NPU CHIP AICORE_ALLOC MEMORY_MB [PRIORITY]
task() {
    token=
    if [ -n "$FLEXNPUD_TOKEN_FILE" ]; then token=$(cat "$FLEXNPUD_TOKEN_FILE") || exit 1; fi
    body="{\"flexnpu_id\": \"$1\", \"entity\": \"$2\", \"npu\": $3, \"chip\": $4, \"aicore_alloc\": $5,"
    body="$body \"memory_alloc\": $6, \"priority\": ${7:-0}}"
    # The token goes by standard input: the command line is for everyone to see.
    answer=$(printf 'header = "Authorization: Bearer %s"\n' "$token" |
        curl --silent --show-error --config - --data "$body" "$FLEXNPUD/device/register") || failed=1
    printf '%s\n' "$answer"
    case $answer in *'"status":"OK"'*) ;; *) failed=1 ;; esac
}

task flexnpu0 vllm0 0 0 2 30720
task flexnpu1 vllm1 0 0 8 30720

exit $failed
