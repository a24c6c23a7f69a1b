"""Known vulnerabilities of what is installed here (pip-audit, PyPI's own database). Offline it says so, and passes.

IGNORED: an identifier, and why it does not matter here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

SECONDS = 180
IGNORED: dict[str, str] = {}
# How pip-audit's last words begin where it did not get through: requests' errors, and its own for some of them.
UNREACHED = re.compile(
    r"^requests\.exceptions\.(ConnectionError|ProxyError|SSLError|ConnectTimeout|ReadTimeout)\b"
    r"|Could not connect to PyPI|PyPI is not redirecting properly",
    re.MULTILINE,
)


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--vulnerability-service", "pypi"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return _unreached()
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        if UNREACHED.search(done.stderr):
            return _unreached()
        print(f"audit: pip-audit ended with exit code {done.returncode} and no list: {done.stderr[-1000:].strip()}")
        return 1
    looked_up = [each for each in packages if "skip_reason" not in each]
    if not looked_up:  # a mirror of PyPI that has no such pages
        return _unreached()
    found = [(each, vulnerability) for each in looked_up for vulnerability in each["vulns"]]
    bad = [(each, one) for each, one in found if not {one["id"], *one.get("aliases", [])} & IGNORED.keys()]
    for each, one in bad:
        fixed = ", ".join(one["fix_versions"]) or "no version yet"
        print(f"audit: {each['name']} {each['version']}: {one['id']}, mended in {fixed}")
    print(f"audit: {len(looked_up)} of {len(packages)} packages looked up, {len(bad)} vulnerabilities")
    return 1 if bad else 0


def _unreached() -> int:
    print("audit: not reached: no package could be looked up at pypi.org, so nothing is known")
    return 0


if __name__ == "__main__":
    sys.exit(main())
