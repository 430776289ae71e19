#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Forgets all tasks and old logs, as the documents ask for before a start. flexnpud itself doesn't need it:
# tasks outlive a restart. It must not run while flexnpud does.
set -eu
cd "$(dirname "$0")"
rm -rf ./ins/* ./pages/* ./flexnpud.log.*
