#!/usr/bin/env bash
# What the image starts: becomes the command as it is given, after giving a user without a home a private one.
# The image's own user has /recipe. Whoever runs it under another number (-u UID:GID), or read-only, cannot write there,
# and a home in which others may write is no place for what programs keep and read again (horovodrun: ~/.horovod).
set -euo pipefail

if [ ! -O "${HOME:-}" ] || [ ! -w "${HOME:-}" ]; then
  HOME=$(mktemp -d "${TMPDIR:-/tmp}/home-XXXXXX")
  export HOME
fi
exec "$@"
