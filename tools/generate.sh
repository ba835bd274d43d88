#!/bin/sh
# Regenerates the Go code of the .proto files (protoc from Debian's protobuf-compiler, generators pinned in go.mod), and
# KVM's structures and numbers from the kernel's headers (Debian's linux-libc-dev and gcc).
set -eu
cd "$(dirname "$0")/.."
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
protoc -I . --plugin="$bin/protoc-gen-go" --plugin="$bin/protoc-gen-go-grpc" \
	--go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative \
	sdk/proto/v1/plugin.proto core/control/v1/control.proto

# cgo takes only .go files, and writes its argument's name into its output.
(cd "$bin" && cp "$OLDPWD/core/kvm/kvm.godefs" kvm.go && CGO_ENABLED=1 GOOS=linux GOARCH=amd64 go tool cgo -godefs kvm.go >out)
gofmt "$bin/out" >core/kvm/zkvm_linux_amd64.go
