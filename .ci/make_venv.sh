#!/usr/bin/env bash
# Make the virtual environment $1 with the first Python on this machine that s2robot runs on.
# PYTHON=/path/to/python overrides the search. A venv that is there and fits is kept.
set -euo pipefail

venv=$1
fits='import sys; assert (3, 10) <= sys.version_info[:2] < (3, 13)'

make_venv() {
    local python without_venv=
    for python in ${PYTHON:-python3.12 python3.11 python3.10 python3}; do
        "$python" -c "$fits" 2>/dev/null || continue
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "Making $venv with $("$python" --version) ($(command -v "$python"))"
            "$python" -m venv --clear "$venv"
            return
        fi
        without_venv=$python
    done
    if [ -n "$without_venv" ]; then
        echo "Error: $without_venv cannot make virtual environments. As root: apt-get install -y $without_venv-venv" >&2
    else
        echo "Error: s2robot needs Python 3.10, 3.11 or 3.12;" \
            "${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>/dev/null || echo missing)." \
            "Install one, or: make PYTHON=/path/to/python3.11 setup" >&2
    fi
    exit 1
}

"$venv/bin/python" -c "$fits; import pip" 2>/dev/null || make_venv
# The pip that comes with Python 3.10 (23.0) searched our requirements for nine minutes without an end; 26 takes 20 s.
"$venv/bin/python" -m pip install --quiet 'pip>=25'
