"""What the seeds of episodes are for: results are reported on those that no choice and no training saw."""

from __future__ import annotations

EVALUATION_SEED = 100_000
SEED_USES = {0: "evaluation", 500_000: "validation", 1_000_000: "demonstrations"}
"""First seed -> what seeds from there on are for."""


def seed_uses(seeds: range) -> list[str]:
    """What these seeds are for, by `SEED_USES`."""
    starts = list(SEED_USES)
    return [
        SEED_USES[start]
        for start, end in zip(starts, [*starts[1:], seeds.stop], strict=True)
        if seeds.start < end and start < seeds.stop
    ]
