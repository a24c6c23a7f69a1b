#!/usr/bin/env bash
# Make the virtual environment $1 with the first Python on this machine that s2robot runs on.
# PYTHON=/path/to/python overrides the search. A venv that is there and fits is kept.
set -euo pipefail

venv=$1
fits='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))'

if "$venv/bin/python" -c "$fits" 2>/dev/null && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

for python in ${PYTHON:-python3.12 python3.11 python3.10 python3}; do
    "$python" -c "$fits" 2>/dev/null || continue
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        without_venv=$python
        continue
    fi
    echo "Making $venv with $("$python" --version) ($(command -v "$python"))"
    exec "$python" -m venv --clear "$venv"
done

if [ -n "${without_venv:-}" ]; then
    echo "Error: $without_venv cannot make virtual environments. As root: apt-get install -y $without_venv-venv" >&2
else
    found=$(python3 --version 2>/dev/null || echo 'no python3')
    echo "Error: s2robot needs Python 3.10, 3.11 or 3.12; ${PYTHON:+$PYTHON is not one, and }here is $found." \
        "Install one, or: make PYTHON=/path/to/python3.11 setup" >&2
fi
exit 1
