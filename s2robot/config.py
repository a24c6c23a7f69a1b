"""Configuration: frozen dataclasses are the schema, YAML files hold what differs, the command line has the last word.

defaults of the dataclass  <-  configs/<name>.yaml  <-  --collect.demos 60 --encoder.scales 1,2,3
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shlex
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import draccus
import yaml
from draccus.utils import ParsingError

from s2robot import files
from s2robot.errors import CorruptFile, InvalidInput, S2RobotError, UnknownName, UsageError, in_words

Config = TypeVar("Config")

FREE = ("workers", "checkpoint_every")
"""Keys, in whatever section, by which a run's results do not differ."""

COMMANDS = {"rl": "s2robot rl {}", "study": "s2robot study {}", "pretrain": "s2robot pretrain --config {}"}
"""First word of a config's name -> the command that it is for; what has another trains a policy."""


def load(schema: type[Config], source: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Build a config.

    Args:
        schema: a frozen dataclass, nested at will.
        source: a YAML file, or the name of one that ships with s2robot; None for the defaults.
        overrides: ["--policy.hidden", "512", ...]; `--key=value` and bare `--flag` for true are understood.

    Raises:
        UnknownName: a key that is not in the schema, with the nearest that is.
        InvalidInput: a value of the wrong type, or a config of another command.
    """
    return build(schema, read(source) if source else {}, source or "", overrides)


def build(schema: type[Config], tree: dict[str, Any], where: str, overrides: Sequence[str] = ()) -> Config:
    """The same of a tree that was read already; `where` it is from, for errors."""
    tree, known = unfolded(tree), keys(schema)
    for key in flat(tree):
        if key not in known:
            raise strange(where, key, known)
    _override(tree, known, overrides)
    for key, hint in known.items():
        if _at(tree, key) is None and not _may_be(hint, type(None)):
            raise InvalidInput(f"Configuration: {key} has no value; expected {getattr(hint, '__name__', hint)}")
        if typing.get_origin(hint) is tuple and isinstance(text := _at(tree, key), str):  # else its letters are taken
            raise InvalidInput(f"Configuration: {key} is {text!r}; expected several, or one in a list: [{text}]")
    try:
        return draccus.decode(schema, tree)  # type: ignore[no-any-return]
    except (ParsingError, TypeError) as error:
        raise InvalidInput(f"Configuration: {' '.join(str(_root(error)).split())}") from error


def unfolded(tree: dict[str, Any]) -> dict[str, Any]:
    """A copy in which `encoder.scales: [1]`, as an option is written, is `encoder: {scales: [1]}`."""
    whole: dict[str, Any] = {}
    for key, value in tree.items():
        inner: Any = unfolded(value) if isinstance(value, dict) else copy.deepcopy(value)
        for part in reversed(str(key).split(".")):
            inner = {part: inner}
        whole = merged(whole, inner)
    return whole


def merged(tree: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A tree with what another says instead."""
    common = [key for key in tree.keys() & other.keys() if isinstance(tree[key], dict) and isinstance(other[key], dict)]
    both = {key: merged(tree[key], other[key]) for key in common}
    return {**tree, **other, **both}


def strange(where: str, key: str, known: Iterable[str]) -> S2RobotError:
    """What to raise where a config has a key that the command which reads it does not know."""
    if where not in names():
        return UnknownName(f"key in {where}", key, known)
    command = COMMANDS.get(where.partition("-")[0], "s2robot demo --config {}")
    return InvalidInput(f"{where} is a config of another command: {command.format(where)}")


def _root(error: BaseException) -> BaseException:
    """What a config of ours itself said against a value, wherever draccus wrapped it; else draccus' own words."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, S2RobotError):
            return inner
        inner = inner.__cause__ or inner.__context__
    return error


def dump(config: Any) -> str:
    """The resolved config as YAML."""
    return str(yaml.safe_dump(draccus.encode(config), sort_keys=False))


def keep(config: Any, out: Path) -> None:
    """Write a run's config into its folder, or hold it against the one that is there: a run is never two.

    An option that the file does not know came later and had its default.

    Raises:
        InvalidInput: the folder holds a run with other settings; says which.
    """
    path, now = out / "config.yaml", dump(config)
    if not path.exists():
        with files.atomic(path) as temporary:
            temporary.write_text(now, encoding="utf-8")
    else:
        check_kept(config, out)


@contextlib.contextmanager
def bound(
    config: Any, out: Path, *, frees: type[BaseException] = UsageError, beside: Sequence[str] = ()
) -> Iterator[None]:
    """`keep`, while a run begins: one that could not, for an error that `frees`, has settings that bind nobody.

    Args:
        beside: files of the folder that go with them.
    """
    begins = not (out / "config.yaml").exists()
    keep(config, out)
    try:
        yield
    except frees:
        for name in ("config.yaml", *beside) if begins else ():
            (out / name).unlink(missing_ok=True)
        raise


def check_kept(config: Any, out: Path) -> None:
    """Hold a config against that of the run which is in a folder, if there is one.

    Raises:
        InvalidInput: the folder holds a run with other settings; says which.
    """
    path = out / "config.yaml"
    before = merged(default(type(config)), read(str(path))) if path.exists() else None
    if before is not None and (changed := differences(binding(before), binding(yaml.safe_load(dump(config))))):
        raise InvalidInput(
            f"{out} holds a run with other settings ({'; '.join(changed)}). Choose another --out, or:"
            f" rm -r {shlex.quote(str(out))}"
        )


def binding(tree: dict[str, Any]) -> dict[str, Any]:
    """What of a run's settings decides its results: all but who does the work, and how often it is written down."""
    kept = {key: binding(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in kept.items() if key not in FREE}


def differences(before: Any, after: Any) -> list[str]:
    """What is not the same in two configs: ["train.lr: 0.1 -> 0.2", ...]."""
    gone, come = _lines(before), _lines(after)
    changed = [f"{key}: {gone[key]} -> {come.get(key, 'none')}" for key in sorted(gone) if gone[key] != come.get(key)]
    return changed + [f"{key}: none -> {come[key]}" for key in sorted(come.keys() - gone.keys())]


def default(schema: type[Any]) -> dict[str, Any]:
    """All of a schema's defaults."""
    tree: dict[str, Any] = yaml.safe_load(dump(schema()))
    return tree


def planted(overrides: Sequence[str], schema: type[Any]) -> dict[str, Any]:
    """What ["--train.steps", "300", ...] say, as a tree."""
    tree: dict[str, Any] = {}
    _override(tree, keys(schema), overrides)
    return tree


def as_yaml(tree: dict[str, Any]) -> str:
    """Text that `read` reads."""
    return str(yaml.safe_dump(files.plain(tree), sort_keys=False))


def said(source: str, key: str) -> Any:
    """What a config file, or one that ships with s2robot, says of a key at its top; None where it does not."""
    return read(source).get(key)


def _lines(tree: Any, prefix: str = "") -> dict[str, str]:
    """Every dotted key of a config with its value as text."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: str(tree)}
    return {line: text for key, value in tree.items() for line, text in _lines(value, f"{prefix}{key}.").items()}


def names() -> list[str]:
    """Configs that ship with s2robot."""
    folder = resources.files("s2robot").joinpath("configs")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def keys(schema: type[Any], prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a schema with its type, in the order of its fields."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            found |= keys(typing.cast(type, hint), f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = hint
    return found


def read(source: str) -> dict[str, Any]:
    """What a YAML file says, or one that ships with s2robot."""
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        if source not in names():
            raise UnknownName("config", source, names(), "or a path that ends in .yaml")
        path = Path(str(resources.files("s2robot") / "configs" / f"{source}.yaml"))
    if not path.is_file():
        raise InvalidInput(f"No config file {path}. Those that ship with s2robot: {', '.join(names())}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CorruptFile(path, in_words(error, 1000), "Mend the YAML at that place.") from error
    if not isinstance(tree, dict | None):
        raise CorruptFile(path, f"it holds a {type(tree).__name__}, not keys and values", "See configs/ for examples.")
    return tree or {}


def flat(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of a tree."""
    found = []
    for key, value in tree.items():
        found += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


def _override(tree: dict[str, Any], known: dict[str, Any], overrides: Sequence[str]) -> None:
    for key, text in _pairs(overrides):
        if key not in known:
            raise UnknownName("option", f"--{key}", [f"--{name}" for name in known])
        if text is None and not _may_be(known[key], bool):
            raise InvalidInput(f"--{key} has no value")
        _plant(tree, key, _value("true" if text is None else text, known[key]))


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str | None]]:
    """Options with what they are given; None for a bare one."""
    pairs: list[tuple[str, str | None]] = []
    rest = list(overrides)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise InvalidInput(f"Unexpected argument {word!r}; options look like --collect.demos 60")
        key, equals, text = word[2:].partition("=")
        is_bare = not equals and not (rest and not rest[0].startswith("--"))
        pairs.append((key.replace("-", "_"), None if is_bare else text if equals else rest.pop(0)))
    return pairs


def _value(text: str, hint: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        return [_scalar(part) for part in text.strip("()[] ").split(",") if part.strip()]
    is_text = hint is str or (typing.get_origin(hint) is types.UnionType and str in typing.get_args(hint))
    if is_text and text.lower() not in ("null", "none"):
        return text
    return _scalar(text) if text.lower() != "none" else None


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{text!r} is no value: {' '.join(str(error).split())[:120]}") from error


_ABSENT: Any = object()


def _at(tree: Any, key: str) -> Any:
    """What a tree says of a dotted key."""
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return _ABSENT
        tree = tree[part]
    return tree


def _may_be(hint: Any, kind: type) -> bool:
    return hint in (Any, kind) or kind in typing.get_args(hint)


def _plant(tree: dict[str, Any], key: str, value: Any) -> None:
    *branches, leaf = key.split(".")
    for branch in branches:
        tree = tree.setdefault(branch, {})
    tree[leaf] = value
