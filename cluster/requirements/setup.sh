#!/usr/bin/env bash
# Makes .venv in this checkout from the locked requirements and installs rayline into it, editable.
#
#   make setup                  finds Python 3.11 or 3.12 and whether this machine has a GPU
#   make setup PYTHON=python3.12 LOCK=cpu    says both
#
# It needs Python and a way to a package index the first time. When nothing has changed since, it
# ends at once and needs no network. Settings made for pip (a mirror, a folder of wheels, a
# certificate) are honoured: uv, which does the work, does not read them by itself.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly HERE=cluster/requirements
readonly STAMP=.venv/rayline-setup
# Used only where no folder of wheels holds the CPU build: a page that lists torch and nothing else.
readonly TORCH_CPU_PAGE=https://download.pytorch.org/whl/cpu/torch/

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
    # A version manager's shim can be on the path and still not run: only running it tells.
    if fits "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  fail "Python 3.11 or 3.12 is needed; tried: ${PYTHON:-python3.11 python3.12 python3 python}." \
    "Install one, or name it: make setup PYTHON=/path/to/python3.11"
}

lock_name() {
  case "${LOCK:-}" in
    cpu | gpu) echo "$LOCK" ;;
    "") if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then echo gpu; else echo cpu; fi ;;
    *) fail "LOCK is '$LOCK'; it must be cpu or gpu" ;;
  esac
}

# What the environment depends on; the folder too, because scripts in .venv name it.
fingerprint() {
  { printf '%s\n' "$PWD" "$1" "${PYTHON:-}"; cat "$HERE/$1.txt" pyproject.toml "$HERE/setup.sh"; } \
    | sha256sum | cut -d' ' -f1
}

make_venv() {
  local python
  if grep -qsF -- "$PWD/.venv" .venv/pyvenv.cfg && fits .venv/bin/python && [ -z "${PYTHON:-}" ]; then
    say "keeping the environment in .venv ($(.venv/bin/python -V))"
    return
  fi
  python=$(find_python)
  say "making an environment in .venv with $("$python" -V)"
  rm -rf .venv
  "$python" -m venv --prompt rayline .venv \
    || fail "$python cannot make environments (on Debian and Ubuntu: install python3-venv)"
}

pip_setting() { .venv/bin/python -m pip config get "$1" 2>/dev/null || true; }

# Sets in uv's own variables what the user set for pip.
carry_pip_settings() {
  local certificate index
  certificate=${PIP_CERT:-$(pip_setting global.cert)}
  index=${PIP_INDEX_URL:-$(pip_setting global.index-url)}
  [ -z "$certificate" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificate}"
  [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
  export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"
}

# Prints where torch's CPU build is to be looked for, one place a line.
torch_places() {
  local version tag place
  version=$(sed -n 's/^torch==//p' "$HERE/cpu.txt")
  tag=$(.venv/bin/python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  for place in ${PIP_FIND_LINKS:-$(pip_setting global.find-links)}; do
    echo "$place"
    if compgen -G "$place/torch-$version-$tag-*.whl" >/dev/null; then
      return
    fi
  done
  echo "$TORCH_CPU_PAGE"
}

install_packages() {
  local name=$1 place
  local -a options=()
  # With nobody watching, a line a package is noise; with somebody, the bars are the progress.
  [ -t 2 ] || options+=(--quiet)
  if [ "$name" = cpu ]; then
    while read -r place; do options+=(--find-links "$place"); done < <(torch_places)
  fi
  say "installing $(grep -cE '^[a-z0-9.-]+==' "$HERE/$name.txt") locked packages ($name);" \
    "the first time this downloads a few GB and takes minutes"
  .venv/bin/uv pip sync --python .venv/bin/python "${options[@]}" "$HERE/$name.txt" \
    || fail "the packages could not be installed; uv says why above." \
      "Without a way to the internet: put the wheels in a folder and say PIP_FIND_LINKS=FOLDER"
  say "installing rayline itself, editable"
  .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
}

check_imports() {
  say "checking that torch, transformers, ray and vllm import together"
  local log=.venv/rayline-setup.log
  .venv/bin/python -c 'import torch, transformers, ray, vllm, rayline' >"$log" 2>&1 \
    || { tail -n 20 "$log" >&2; fail "the packages do not import; the whole output is in $log"; }
}

# A driver that is too old shows only when torch asks it.
warn_of_old_driver() {
  nvidia-smi -L >/dev/null 2>&1 || return 0
  .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null \
    || say "WARNING: nvidia-smi answers, but torch finds no GPU: CUDA 13 needs driver 580 or newer." \
      "Bring the driver up to date, or go on without GPUs: make setup LOCK=cpu"
}

main() {
  [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] \
    || fail "the locked packages are for Linux on x86_64; this is $(uname -s) on $(uname -m)." \
      "The client alone installs anywhere: python3 -m pip install ."
  local name wanted started=$SECONDS
  name=$(lock_name)
  wanted=$(fingerprint "$name")
  if [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ] && fits .venv/bin/python; then
    say "up to date"
    return
  fi
  make_venv
  rm -f "$STAMP"
  carry_pip_settings
  say "bringing the installer (uv)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$HERE/uv.txt"
  install_packages "$name"
  check_imports
  [ "$name" = cpu ] || warn_of_old_driver
  echo "$wanted" >"$STAMP"
  say "done in $((SECONDS - started)) s"
}

main
