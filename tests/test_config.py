"""Defaults, files and the command line: the last word wins, and a typo is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from s2robot import config
from s2robot.cli import main
from s2robot.demo import DemoConfig
from s2robot.encoder import EncoderConfig
from s2robot.errors import CorruptFile, InvalidInput, UnknownName, UsageError


@dataclass(frozen=True)
class Inner:
    width: int = 3
    rate: float = 0.5
    scales: tuple[float, ...] = (1.0, 2.0)
    file: str | None = None
    on: bool = False


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    inner: Inner = field(default_factory=Inner)


def test_command_line_beats_file_beats_default(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("inner:\n  width: 5\n  rate: 0.1\n")
    loaded = config.load(Outer, str(path), ["--inner.rate", "3e-4", "--name=7"])
    assert loaded == Outer("7", Inner(width=5, rate=3e-4))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--inner.scales", "1,2,3"], Inner(scales=(1, 2, 3))),
        (["--inner.scales", "[1]"], Inner(scales=(1,))),
        (["--inner.on"], Inner(on=True)),
        (["--inner.on", "false"], Inner(on=False)),
        (["--inner.file", "none"], Inner(file=None)),
        (["--inner.file", "12"], Inner(file="12")),
    ],
    ids=str,
)
def test_values_take_the_type_of_their_field(words: list[str], expected: Inner) -> None:
    assert config.load(Outer, None, words).inner == expected


def test_what_is_dumped_loads_back(tmp_path: Path) -> None:
    original = config.load(DemoConfig, "demo-quick", ["--policy.hidden", "64"])
    path = tmp_path / "c.yaml"
    path.write_text(config.dump(original))
    assert config.load(DemoConfig, str(path)) == original


@pytest.mark.parametrize("name", [name for name in config.names() if name.startswith("demo")])
def test_every_shipped_demo_config_loads(name: str) -> None:
    assert config.load(DemoConfig, name).collect.demos > 0


def test_typos_name_the_nearest_key(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"Did you mean '--inner\.width'"):
        config.load(Outer, None, ["--inner.witdh", "4"])
    path = tmp_path / "c.yaml"
    path.write_text("inner:\n  widht: 5\n")
    with pytest.raises(UnknownName, match=r"Did you mean 'inner\.width'"):
        config.load(Outer, str(path))
    with pytest.raises(UnknownName, match="Did you mean 'demo'"):
        config.load(Outer, "dmeo")


@pytest.mark.parametrize(
    "words",
    [["--inner.width", "abc"], ["--inner.width", "2.5"], ["stray"], ["--inner", "3"], ["--inner.width", "--inner.on"]],
    ids=str,
)
def test_wrong_values_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        config.load(Outer, None, words)


def test_the_schema_s_own_checks_speak_in_their_words() -> None:
    with pytest.raises(InvalidInput, match="coarse first"):
        config.load(EncoderConfig, None, ["--scales", "2,1"])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just words"], ids=["torn", "list", "text"])
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(CorruptFile, match=r"c\.yaml"):
        config.load(Outer, str(path))


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--policy.readout", "cnov"], "Unknown readout 'cnov'. Did you mean 'conv'"),
        (["--policy.execute", "9"], "expected 1 <= execute <= chunk"),
    ],
)
def test_what_a_config_says_against_a_value_is_all_that_is_said(option: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.load(DemoConfig, None, option)
    assert says in str(caught.value) and "Underlying" not in str(caught.value) and "draccus" not in str(caught.value)


@pytest.mark.parametrize("words", [["--inner.width="], ["--inner.width", "null"], ["--inner.on", "none"]])
def test_nothing_where_a_value_must_be_is_refused(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has no value; expected"):
        config.load(Outer, None, words)
    (tmp_path / "c.yaml").write_text("inner:\n  rate:\n")
    with pytest.raises(InvalidInput, match=r"inner\.rate has no value; expected float"):
        config.load(Outer, str(tmp_path / "c.yaml"))


def test_one_word_where_several_belong_is_not_taken_letter_by_letter(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("inner: {scales: '12'}\n")
    with pytest.raises(InvalidInput, match=r"inner\.scales is '12'; expected several, or one in a list: \[12\]"):
        config.load(Outer, str(tmp_path / "c.yaml"))
    assert config.load(Outer, None, ["--inner.scales", "12"]).inner.scales == (12.0,)


@pytest.mark.parametrize("text", ["[", "{a", "'", "\x01", "*x", "!!python/name:os.system"])
def test_text_that_is_no_value_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        config.load(Outer, None, ["--inner.width", text])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("demo --config rl-reach", "s2robot rl rl-reach"),
        ("demo --config pretrain-tiny", "s2robot pretrain --config pretrain-tiny"),
        ("pretrain --config demo", "s2robot demo --config demo"),
        ("study rl-lift", "s2robot rl rl-lift"),
        ("study demo-quick", "s2robot demo --config demo-quick"),
        ("rl study-pick", "s2robot study study-pick"),
    ],
)
def test_a_config_of_another_command_says_whose_it_is(
    words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"{words.rsplit(maxsplit=1)[-1]} is a config of another command: {says}\n" in said
    assert not (tmp_path / "out").exists()
