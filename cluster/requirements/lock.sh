#!/usr/bin/env bash
# Writes cpu.txt, gpu.txt, uv.txt and litellm.txt: every package that the set-up installs, pinned and hashed.
#
#   make lock          keeps the pins that still fit
#   make lock UPGRADE=1    takes the newest versions that pyproject.toml allows
#
# The files name no package index: whoever installs from them chooses it, and the hashes hold the
# content to what was locked. One exception: torch in cpu.txt carries no hash, because its CPU
# build comes from another index (or from a folder of wheels) and its wheels are built once for each
# Python, so there is no one place from which the hashes of all of them could be read.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly HERE=cluster/requirements
readonly UV=.venv/bin/uv
readonly UV_PIN="uv==0.13.8"
# Before 1.84 its server has published weaknesses; from then on it agrees with cpu.txt in no version,
# so the tests that speak through it make an environment of its own.
readonly LITELLM_PIN="litellm>=1.84"
readonly TORCH_CPU_PIN="torch==2.13.0+cpu"
readonly TARGET=(--python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate --no-header)

[ -x "$UV" ] || { echo "lock: $UV is missing: run 'make setup' first" >&2; exit 1; }

upgrade=()
[ "${UPGRADE:-}" != 1 ] || upgrade=(--upgrade)

heading() {
  printf '# Linux x86_64, Python 3.11 and 3.12: %s.\n# Written by lock.sh; do not edit.\n' "$1"
}

# resolve PYTHON OUT [ARGUMENTS...]: all extras of pyproject.toml, into OUT.
resolve() {
  local python=$1 out=$2
  shift 2
  "$UV" pip compile --quiet "${TARGET[@]}" --python-version "$python" --all-extras pyproject.toml \
    --excludes "$HERE/excludes.txt" --output-file "$out" "$@" >/dev/null
}

# One file serves both Pythons: 3.12 must be satisfied by exactly the pins that 3.11 chose.
check_python_312() {
  local lock=$1 again
  shift
  again=$(mktemp)
  resolve 3.12 "$again" --constraints "$lock" "$@"
  local missing
  missing=$(comm -13 <(grep -oE '^[a-z0-9.-]+==[^ ]+' "$lock" | sort) \
    <(grep -oE '^[a-z0-9.-]+==[^ ]+' "$again" | sort))
  rm -f "$again"
  [ -z "$missing" ] && return
  echo "lock: Python 3.12 needs what $lock does not pin; name it in the .in file:" >&2
  echo "$missing" >&2
  return 1
}

# lock NAME TITLE [ARGUMENTS...]
lock() {
  local out=$HERE/$1.txt title=$2 fresh
  shift 2
  fresh=$(mktemp)
  [ ! -f "$out" ] || grep -v '^torch==.*+cpu' "$out" >"$fresh"
  resolve 3.11 "$fresh" "${upgrade[@]}" "$@"
  check_python_312 "$fresh" "$@"
  { heading "$title"; cat "$fresh"; } >"$out"
  rm -f "$fresh"
}

# alone NAME TITLE REQUIREMENT: what one package needs, and nothing of ours.
alone() {
  local out=$HERE/$1.txt fresh
  fresh=$(mktemp)
  [ ! -f "$out" ] || cp "$out" "$fresh"
  "$UV" pip compile --quiet "${TARGET[@]}" --python-version 3.11 "${upgrade[@]}" \
    --output-file "$fresh" - <<<"$3" >/dev/null
  { heading "$2"; grep -v '^# Linux\|^# Written' "$fresh"; } >"$out"
  rm -f "$fresh"
}

lock cpu "a machine without a GPU" "$HERE/cpu.in" --excludes "$HERE/excludes-cpu.txt"
echo "$TORCH_CPU_PIN" >>"$HERE/cpu.txt"
lock gpu "a machine with NVIDIA GPUs" "$HERE/gpu.in" --excludes "$HERE/excludes-gpu.txt"
alone uv "the installer of the others" "$UV_PIN"
alone litellm "LiteLLM as a client, for tests" "$LITELLM_PIN"

for name in cpu gpu uv litellm; do
  printf 'lock: %s/%s.txt: %s packages\n' "$HERE" "$name" "$(grep -cE '^[a-z0-9.-]+==' "$HERE/$name.txt")"
done
