"""Files cut short, with a bit flipped, bytes zeroed or parts swapped: a clear error, or all of it read right.

Never a wrong answer, a crash, a hang, or an error that does not say which file. Formats of others that carry no
checksum are read here with FILE.sha256 beside them (`s2robot.seals`); without it nobody can tell.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import mutations
import pytest
import readers
from materials import Materials
from processes import PATIENCE, context, ended, start

pytestmark = [pytest.mark.faults, pytest.mark.sim]

SCALE = float(os.environ.get("S2ROBOT_FAULTS_SCALE", "1"))
KINDS = list(readers.kinds())


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_damage_is_seen(kind: readers.Kind, made: Materials, tmp_path: Path, count: Callable[..., None]) -> None:
    count("damaged file", kind.name)  # lost, until it is known better
    ours, theirs = context().Pipe()
    number, tries = [each.name for each in KINDS].index(kind.name), max(4, round(SCALE * kind.tries))
    with ended(start(_judge, number, made, tmp_path, tries, theirs)) as process:
        theirs.close()
        assert ours.poll(PATIENCE + tries * mutations.PATIENCE), "whoever damages files hangs itself"
        outcomes, lost = ours.recv()
        process.join(PATIENCE)
    count("damaged file", kind.name, outcomes, len(lost))
    assert not lost, f"{len(lost)} lost:\n" + "\n".join(lost[:3])


def _judge(number: int, made: Materials, folder: Path, tries: int, pipe: object) -> None:
    path, read = KINDS[number].make(made, folder)
    mutations.judge(path, read, tries, number, pipe)
