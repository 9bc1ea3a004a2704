#!/usr/bin/env bash
# Entrypoint of the image: execs the given command, after creating a private home for users without a usable one.
# The image's own user has /recipe. A container that runs under another UID (-u UID:GID) or read-only cannot write there,
# and a world-writable home is unsafe, because programs read back what they store in it (horovodrun: ~/.horovod).
set -euo pipefail

if [ ! -O "${HOME:-}" ] || [ ! -w "${HOME:-}" ]; then
  HOME=$(mktemp -d "${TMPDIR:-/tmp}/home-XXXXXX")
  export HOME
fi
exec "$@"
