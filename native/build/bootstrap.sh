#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes build/venv from requirements/dev.txt (pinned, with hashes); does nothing when it is up to date.
# Needs: Python 3.11-3.13. python3-venv is installed where the user is root on Debian or Ubuntu.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
venv=$root/build/venv
requirements=$root/requirements/dev.txt

find_python() {
    for name in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "no Python 3.11, 3.12 or 3.13 found; install one (Debian 12, Ubuntu 24.04: sudo apt-get install python3)," \
        "or name it: make PYTHON=/path/to/python3.12" >&2
    exit 1
}

# Debian ships venv and ensurepip apart from the interpreter.
ensure_venv_module() {
    "$1" -c 'import venv, ensurepip' 2>/dev/null && return
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing $package" >&2
        # A broken third-party source need not be in the way of this package.
        apt-get update -qq || echo "apt-get update failed; going on with the lists there are" >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
    else
        echo "Python's venv module is missing; run: sudo apt-get update && sudo apt-get install $package" >&2
        exit 1
    fi
}

python=$(find_python)
wanted=$("$python" -c 'import hashlib, sys; print(sys.version.split()[0], hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$requirements")
if [ -f "$venv/.requirements" ] && [ "$(cat "$venv/.requirements")" = "$wanted" ]; then
    exit 0
fi
ensure_venv_module "$python"
echo "making build/venv with $("$python" --version) (about two minutes) ..." >&2
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$requirements"
echo "$wanted" > "$venv/.requirements"
