"""What decided a policy's weights, beside them: a folder never holds one policy in the name of another."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2robot import files, registry
from s2robot.config import differences, merged
from s2robot.errors import InvalidInput

SETTINGS = "settings.json"  # `Lesson.settings`, written when training begins


def hold_against(out: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Compare settings with those that the policy in `out` learned with, if there is one.

    Args:
        defaults: of "policy", "train" and "encoder": an option that `out` does not know came later and had its default.

    Raises:
        InvalidInput: they differ; says in what.
    """
    if (out / SETTINGS).exists():
        before = files.read_json(out / SETTINGS)
    elif (out / "policy.json").exists():  # of an older version, which wrote no more than this
        said = files.read_json(out / "policy.json")
        before = {"kind": registry.RENAMED.get(said["kind"], said["kind"]), "policy": said["config"]}
    else:
        return
    before.setdefault("versions", [])  # came later
    known = {key: value for key, value in files.plain(defaults).items() if key in before}
    known.get("train", {}).pop("checkpoint_every", None)
    if changed := differences(merged(known, before), {key: settings[key] for key in before}):
        run = out.parent if out.name == "policy" else out
        raise InvalidInput(
            f"The policy in {out} learned with other settings ({'; '.join(changed)}). Choose another folder (--out), or"
            f" remove it with all that was measured of it: rm -r {shlex.quote(str(run))}"
        )
