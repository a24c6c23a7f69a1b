"""Known vulnerabilities of what is installed here (pip-audit, PyPI's own database). Offline it says so, and passes.

IGNORED: an identifier, and why it does not matter here.
"""

from __future__ import annotations

import json
import subprocess
import sys

SECONDS = 180
IGNORED: dict[str, str] = {}


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--vulnerability-service", "pypi"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        packages = []
    looked_up = [each for each in packages if "skip_reason" not in each]
    if not looked_up:
        print("audit: not reached: no package could be looked up at pypi.org, so nothing is known")
        return 0
    found = [(each, vulnerability) for each in looked_up for vulnerability in each["vulns"]]
    bad = [(each, one) for each, one in found if not {one["id"], *one.get("aliases", [])} & IGNORED.keys()]
    for each, one in bad:
        fixed = ", ".join(one["fix_versions"]) or "no version yet"
        print(f"audit: {each['name']} {each['version']}: {one['id']}, mended in {fixed}")
    print(f"audit: {len(looked_up)} of {len(packages)} packages looked up, {len(bad)} vulnerabilities")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
