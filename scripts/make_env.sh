#!/usr/bin/env bash
# Makes .venv and installs ViRB into it; used by the Makefile. Safe to run again: what is installed already stays.
# usage: scripts/make_env.sh [base|dev]        PYTHON=python3.12 chooses the interpreter, VENV=path the folder
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-base}
venv=${VENV:-.venv}

child=
trap '[ -z "$child" ] || kill "$child" 2>/dev/null || true' EXIT # pip does not outlive Ctrl-C
trap 'exit 130' INT TERM

fail() { echo "$*" >&2; exit 2; }
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }
suits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
has_venv() { "$1" -c 'import venv, ensurepip' 2>/dev/null; }

find_python() {
    local candidate spare=
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON: there is no such program"
        suits "$PYTHON" || fail "PYTHON=$PYTHON is Python $(version "$PYTHON"); ViRB needs 3.10 or newer"
        echo "$PYTHON"; return
    fi
    for candidate in python3.14 python3.13 python3.12 python3.11 python3.10 python3 python; do
        suits "$candidate" || continue
        if has_venv "$candidate"; then echo "$candidate"; return; fi
        spare=${spare:-$candidate}
    done
    [ -n "$spare" ] || fail "no Python 3.10 or newer found; install one, or name it: make quickstart PYTHON=/path/to/python3"
    echo "$spare"
}

create_venv() {
    if has_venv "$1"; then "$1" -m venv --clear "$venv"; return; fi
    # Debian and Ubuntu ship Python without venv: virtualenv does the same, from a folder that goes away again
    local borrowed
    borrowed=$(mktemp -d)
    if "$1" -m pip install --quiet --target "$borrowed" virtualenv 2>/dev/null && PYTHONPATH=$borrowed "$1" -m virtualenv --quiet --clear "$venv"; then
        rm -rf "$borrowed"; return
    fi
    rm -rf "$borrowed"
    fail "$1 cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python$(version "$1")-venv) and run make again"
}

# pip with one progress line in place of its pages of output, which go to a log
pip_install() {
    local log=$venv/install.log now last='' waited=0
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" >"$log" 2>&1 &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        sleep 1; waited=$((waited + 1))
        now=$(grep -oE '^(Collecting|Installing collected packages|Building)( [A-Za-z0-9_.-]+)?' "$log" | tail -n 1 || true)
        if [ -t 1 ]; then
            printf '\r\033[K  %d:%02d  %s' $((waited / 60)) $((waited % 60)) "$now"
        elif [ $((waited % 30)) -eq 0 ] && [ "$now" != "$last" ]; then
            printf '  %d:%02d  %s\n' $((waited / 60)) $((waited % 60)) "$now"; last=$now
        fi
    done
    if [ -t 1 ]; then printf '\r\033[K'; fi
    if ! wait "$child"; then
        grep -vE '^(Requirement already|Ignoring|Looking in)' "$log" | tail -n 8 | cut -c 1-300 >&2 || true
        fail "pip could not install everything (full log: $log); run make again to go on"
    fi
    child=
}

if suits "$venv/bin/python" && "$venv/bin/python" -c 'import pip' 2>/dev/null; then python=$venv/bin/python; else python=$(find_python); fi
count=$(grep -E '^[a-z]' requirements.txt | sed 's/[=;].*//; s/^faiss-.*/faiss/' | sort -u | wc -l | tr -d ' ')
size=; [ "$(uname -s)" != Linux ] || size=', 7 GB with CUDA libraries'
if [ "$what" = dev ]; then
    echo "Python $(version "$python") · $venv · installing the tools for tests and checks (about half a minute)"
elif [ "$python" = "$venv/bin/python" ]; then
    echo "Python $(version "$python") · $venv is there · bringing its $count packages up to date"
else
    echo "Python $(version "$python") · creating $venv · installing $count packages (about 2 minutes$size)"
    create_venv "$python"
fi

if [ "$what" = dev ]; then
    # -r keeps the tested versions where the tools could pull in others
    pip_install -r requirements.txt -e '.[dev]'
else
    pip_install 'pip>=23.1' # older ones do not know editable installs of today's setuptools
    pip_install -r requirements.txt
    pip_install --no-deps -e .
fi
