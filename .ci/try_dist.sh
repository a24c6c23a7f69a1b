#!/usr/bin/env bash
# Install one built distribution into a fresh venv and use it from another folder.
#   .ci/try_dist.sh .venv/bin/python dist/s2robot-0.1.0-py3-none-any.whl
# Dependencies (7 GB) are seen in the venv of $1 through a path file; an editable s2robot there is not, since path
# files of such a folder are not followed.
set -euo pipefail

python=$1
dist=$(realpath "$2")
tests=$(realpath "$(dirname "$0")/../tests")
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT

"$python" -m venv "$room/venv"
site=$("$room/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/dependencies.pth"
"$room/venv/bin/python" -m pip install --quiet --no-deps --force-reinstall "$dist"

cd "$room" # nothing of the checkout in sight
"$room/venv/bin/python" -I "$tests/smoke.py" "$site"
"$room/venv/bin/s2robot" --help >/dev/null
echo "OK $(basename "$dist")"
