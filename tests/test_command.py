"""Options of a verb and of the config, in any order."""

from __future__ import annotations

from itertools import permutations

import pytest

from s2robot import command


def parse(words: str, *, place: str | None = None) -> tuple[object, list[str], list[str]]:
    parser = command.parser("verb", "Does it.", "s2robot verb RUN")
    parser.add_argument("run", nargs=place)
    parser.add_argument("--seeds", nargs="+")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", "-o")
    options, rest = command.parse(parser, words.split())
    return options.run, [*(options.seeds or []), str(options.json), str(options.out)], rest


def test_the_order_of_options_does_not_matter() -> None:
    for order in permutations(["RUN", "--policy.hidden 5", "--json", "-o there", "--train.lr=-1"]):
        run, own, rest = parse(" ".join(order))
        assert (run, own, sorted(rest)) == ("RUN", ["True", "there"], ["--policy.hidden=5", "--train.lr=-1"]), order


@pytest.mark.parametrize(
    ("words", "run", "rest"),
    [
        ("--encoder.random_weights RUN", "RUN", ["--encoder.random_weights"]),  # bare: it stands for true
        ("--a 1 --encoder.random_weights RUN", "RUN", ["--a=1", "--encoder.random_weights"]),
        ("--encoder.random_weights RUN --train.steps 5", "RUN", ["--encoder.random_weights", "--train.steps=5"]),
        ("--train.lr -3 RUN", "RUN", ["--train.lr=-3"]),
        ("--seeds 0 1 --a 2 RUN", "RUN", ["--a=2"]),
        ("RUN --a --b", "RUN", ["--a", "--b"]),
        ("--a 5 -- RUN", "RUN", ["--a=5"]),
    ],
)
def test_a_word_is_an_options_value_unless_the_verb_would_want_it(words: str, run: str, rest: list[str]) -> None:
    assert parse(words)[::2] == (run, rest)


def test_a_word_that_may_be_missing_is_not_taken_from_an_option() -> None:
    assert parse("--a 5", place="?")[::2] == (None, ["--a=5"])
    assert parse("--a 5 RUN", place="?")[::2] == ("RUN", ["--a=5"])
