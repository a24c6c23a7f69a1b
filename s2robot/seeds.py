"""What the seeds of episodes are for: results are reported on those that no choice and no training saw."""

from __future__ import annotations

EVALUATION, VALIDATION, DEMONSTRATIONS, TRAINING = 100_000, 500_000, 1_000_000, 1_000_000_000
"""The first seed of each."""

APART = 1_000_000
"""Between the first demonstrations of two runs that differ by their seed, and the first training episodes of two."""

SEED_USES = {0: "evaluation", VALIDATION: "validation", DEMONSTRATIONS: "demonstrations", TRAINING: "training"}
"""First seed -> what seeds from there on are for."""


def seed_uses(seeds: range) -> list[str]:
    """What these seeds are for, by `SEED_USES`."""
    starts = list(SEED_USES)
    return [
        SEED_USES[start]
        for start, end in zip(starts, [*starts[1:], seeds.stop], strict=True)
        if seeds.start < end and start < seeds.stop
    ]
