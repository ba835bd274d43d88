#!/bin/sh
# Installs the Debian packages that a task needs and the machine lacks, and says what and why.
# Usage: tools/deps.sh TASK…    tasks: guest (User-Mode Linux with our devices), network (networks for it), bench (measuring
#                               them), kvm (the demo on the KVM machine), module (the lguest bus for Linux), machine (the
#                               freestanding guest on KVM), nested (Linux on our KVM machine, inside QEMU), unit (what some
#                               unit tests need), race (the race detector), generate (generated code)
# Needs root or sudo only if something is missing.
set -eu

missing='' reasons=''
# need FILE-OR-COMMAND PACKAGE WHY
need() {
	case $1 in
	/*) [ -e "$1" ] && return ;;
	*) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 && return ;;
	esac
	missing="$missing $2"
	reasons="$reasons
  $2: $3"
}
# A busybox is there on most machines, but not always a static one.
static_busybox() {
	for b in /bin/busybox /usr/bin/busybox; do
		if [ -x "$b" ] && ! grep -qa '/ld-linux' "$b" 2>/dev/null; then
			echo "$b"
			return
		fi
	done
	echo no-static-busybox
}

# The newest of Debian's kernels for virtual machines, or a name that does not exist.
cloud_kernel() {
	kernel=no-cloud-kernel
	for k in /boot/vmlinuz-*-cloud-amd64; do
		[ ! -e "$k" ] || kernel=$k
	done
	echo "$kernel"
}
# Its headers; a kernel without them does if there is another one that has them.
cloud_headers() {
	for k in /boot/vmlinuz-*-cloud-amd64; do
		h=/lib/modules/${k#/boot/vmlinuz-}/build
		if [ -e "$h/Makefile" ]; then
			echo "$h"
			return
		fi
	done
	echo no-cloud-headers
}

for task in "$@"; do
	case $task in
	guest)
		need linux.uml user-mode-linux "the kernel that runs as an ordinary program: boots a guest without KVM and without root"
		need "$(static_busybox)" busybox-static "the guest's commands, in one static program"
		need mke2fs e2fsprogs "makes the guest's disk image and checks it afterwards"
		need debugfs e2fsprogs "reads files out of the guest's disk image without mounting it"
		;;
	network)
		need ip iproute2 "makes the interfaces of the tests' networks"
		need ping iputils-ping "asks a guest for an answer"
		need tshark tshark "a second opinion on captured frames"
		;;
	bench)
		need iperf3 iperf3 "measures a guest's network"
		need ip iproute2 "makes the interfaces for it"
		need qemu-system-x86_64 qemu-system-x86 "is measured beside"
		need "$(cloud_kernel)" linux-image-cloud-amd64 "the Linux that QEMU boots"
		;;
	machine)
		need gcc gcc "builds the freestanding guest"
		need make make "builds the freestanding guest"
		;;
	nested)
		need qemu-system-x86_64 qemu-system-x86 "emulates a processor that has KVM, whatever this machine has"
		need "$(cloud_kernel)" linux-image-cloud-amd64 "the Linux that boots in our KVM machine"
		need "$(cloud_headers)" linux-headers-cloud-amd64 "builds the module of the lguest bus for it"
		need "$(static_busybox)" busybox-static "the guest's commands, in one static program"
		need gcc gcc "builds the module and the freestanding guest"
		need make make "builds the module and the freestanding guest"
		;;
	kvm)
		need "$(cloud_kernel)" linux-image-cloud-amd64 "the Linux that boots on the KVM machine"
		need "$(static_busybox)" busybox-static "the guest's commands, in one static program"
		need mke2fs e2fsprogs "makes the guest's disk image"
		;;
	module)
		need "$(cloud_headers)" linux-headers-cloud-amd64 "builds the module of the lguest bus for the guest's kernel"
		need gcc gcc "builds the module of the lguest bus"
		need make make "builds the module of the lguest bus"
		;;
	unit)
		need ip iproute2 "makes the interfaces of the tests' networks"
		need tshark tshark "a second opinion on captured frames"
		need passt passt "a peer of the net device's sockets"
		need qemu-system-x86_64 qemu-system-x86 "another peer of them"
		need iasl acpica-tools "a second opinion on our ACPI tables"
		;;
	race)
		need gcc gcc "Go's race detector links with it"
		need /usr/include/stdlib.h libc6-dev "Go's race detector links with it"
		;;
	generate)
		need protoc protobuf-compiler "generates the Go code of the plugin contract"
		need gcc gcc "reads the kernel's structures from its headers"
		need /usr/include/linux/kvm.h linux-libc-dev "has the kernel's structures for KVM"
		;;
	*)
		echo "tools/deps.sh: $task: unknown task; want guest, network, bench, kvm, module, machine, nested, unit, race or generate" >&2
		exit 2
		;;
	esac
done
[ -n "$missing" ] || exit 0

packages=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
echo "Missing Debian packages:$(printf '%s' "$reasons" | sort -u)"

root=
if [ "$(id -u)" -ne 0 ]; then
	root=sudo
fi
if ! command -v apt-get >/dev/null 2>&1; then
	echo "tools/deps.sh: there is no apt-get here; install what corresponds to: $packages" >&2
	exit 1
fi
if [ -n "$root" ]; then
	if ! command -v sudo >/dev/null 2>&1 || { ! [ -t 0 ] && ! sudo -n true 2>/dev/null; }; then
		echo "tools/deps.sh: installing needs root, and sudo cannot be used here. As root, run:" >&2
		echo "    apt-get update && apt-get install --no-install-recommends $packages" >&2
		exit 1
	fi
fi
echo "Installing: $packages"
$root apt-get -q update </dev/null || {
	echo "tools/deps.sh: apt-get update failed; is the network there?" >&2
	exit 1
}
# shellcheck disable=SC2086 # a list of words
$root env DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends $packages </dev/null || {
	echo "tools/deps.sh: could not install: $packages" >&2
	exit 1
}
