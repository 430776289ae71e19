#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes pids.pb.go and pids_grpc.pb.go from pids.proto. protoc is PyPI's grpcio-tools, the generators are
# Go modules; nothing but a change of the service needs this.
set -eu
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet grpcio-tools==1.68.1
GOBIN="$scratch" GOFLAGS='' go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.5
GOBIN="$scratch" GOFLAGS='' go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
PATH="$scratch:$PATH" "$scratch/venv/bin/python" -m grpc_tools.protoc --proto_path=. \
    --go_out=. --go_opt=paths=source_relative \
    --go-grpc_out=. --go-grpc_opt=paths=source_relative pids.proto
