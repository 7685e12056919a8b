# Shared by the scripts beside it: where things are, and how a step is told.
# Sourced, never run.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The same choice as `coracle` itself makes.
if [[ -n ${CORACLE_ROOT:-} ]]; then
    data=$CORACLE_ROOT
elif [[ $EUID -eq 0 ]]; then
    data=/var/lib/coracle
else
    data=${XDG_DATA_HOME:-$HOME/.local/share}/coracle
fi

target=${CARGO_TARGET_DIR:-$PWD/target}
agent=$target/guest/x86_64-unknown-linux-gnu/guest/coracle-guest
coracle=$target/release/coracle
etcd=$data/tools/etcd/usr/bin/etcd
vsock=$data/tools/bin/vhost-device-vsock

# step NAME TEXT: one line per step.
step() { printf '%-10s %s\n' "$1" "$2" >&2; }

# fail NAME TEXT FIX: says what is wrong and what to do, and ends.
fail() {
    step "$1" "$2"
    printf '%-10s fix: %s\n' '' "$3" >&2
    exit 1
}
