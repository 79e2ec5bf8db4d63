#!/usr/bin/env bash
# Makes sure that a Chromium is there for the browser tests: Debian's, by Debian's own installer.
# Ends at once where one is found. Tests skip with a message where none can be had, but not in CI.
set -euo pipefail

say() { printf 'browser: %s\n' "$*"; }

for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
  say "no Chromium on the path, and it cannot be installed from here: install it by hand"
  exit 0
fi
say "installing Debian's chromium; this downloads about 100 MB"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium >/dev/null
