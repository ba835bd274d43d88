#!/bin/bash
# All checks of `make check`. Every one runs, then the failed ones are named.
# TOOLS is a directory for programs that are built here; VERSION is govulncheck's.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$TOOLS:$PATH"
failed=()

# step NAME COMMAND… runs a check.
step() {
	local name=$1
	shift
	echo "=== $name"
	"$@" || {
		failed+=("$name")
		echo "FAIL: $name" >&2
	}
}

generated_sum() {
	find sdk core -name '*.pb.go' -o -name 'z*_linux_*.go' | sort | xargs cat | sha256sum
}

# What protoc, cgo and their generators make now is what is committed.
generated() {
	local before after
	before=$(generated_sum)
	tools/generate.sh || return
	after=$(generated_sum)
	[ "$before" = "$after" ] || {
		echo "generated code (*.pb.go, z*_linux_*.go) was out of date; it is generated anew: commit it" >&2
		return 1
	}
}

# Known holes in what we import. Without the database there is nothing to compare with: said, not failed.
vulnerabilities() {
	local out rc=0
	[ -x "$TOOLS/govulncheck" ] || GOBIN="$TOOLS" GOFLAGS='' go install "golang.org/x/vuln/cmd/govulncheck@v$VERSION" || return
	out=$(timeout 300 "$TOOLS/govulncheck" ./... 2>&1) || rc=$?
	if [ "$rc" -ne 0 ] && [ "$rc" -ne 3 ] && grep -Eq 'vuln\.go\.dev|dial tcp|no such host|HTTP GET' <<<"$out"; then
		echo "NOT CHECKED: the vulnerability database (vuln.go.dev) cannot be reached from here"
		return 0
	fi
	tail -n 40 <<<"$out"
	return "$rc"
}

shell_scripts() {
	local f bad=0
	for f in .ci/run tools/*.sh tools/bench/* examples/demo/run core/initrd/rootfs/init core/initrd/rootfs/sbin/*; do
		if head -1 "$f" | grep -q bash; then bash -n "$f" || bad=1; else sh -n "$f" || bad=1; fi
	done
	return "$bad"
}

step 'go vet' go vet ./...
step 'golangci-lint' golangci-lint run ./...
step 'go mod tidy -diff' go mod tidy -diff
step 'go mod verify' go mod verify
step 'generated code is in sync' generated
step 'import rules (deps_test.go)' go test -count=1 .
# So many executions, not so long: Go's fuzzer sometimes takes the end of its time for a failure.
step 'short fuzzing' make fuzz FUZZTIME=5000x
step 'links of the documentation' go run ./tools/linkcheck
step 'shell scripts parse' shell_scripts
step 'known vulnerabilities' vulnerabilities

if [ "${#failed[@]}" -gt 0 ]; then
	printf 'check: failed: %s\n' "${failed[*]}" >&2
	exit 1
fi
echo 'check: all well'
