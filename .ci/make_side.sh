#!/usr/bin/env bash
# Make .venvs/$1, an environment beside .venv for a package that does not fit into it; the rest are pip's words.
# It has what pip puts into it, then all that .venv has (s2robot and torch among it): only what differs is installed.
# What stands after `--` comes without what it asks for: its words before `--` say what it truly needs.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
shift
side=.venvs/$name
words="$(.venv/bin/python --version) $*"
[ "$(cat "$side/ready" 2>/dev/null)" != "$words" ] || exit 0

.venv/bin/python -m venv --clear --without-pip "$side"
# Behind its own packages, by a line that is run: a plain path would leave out .venv's own .pth files (s2robot's).
site=$("$side/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
main=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$main')" > "$site/zz_beside.pth"
echo "Installing $name into $side"
needed=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    needed+=("$1")
    shift
done
"$side/bin/python" -m pip install --quiet "${needed[@]}"
[ $# -le 1 ] || "$side/bin/python" -m pip install --quiet --no-deps "${@:2}"
echo "$words" > "$side/ready"
