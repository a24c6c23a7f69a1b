"""torch's threads: put aside for as long as somebody asks, and given back to everybody."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from small_encoders import eye, random_frames, small_encoder

from s2robot import engines, threads
from s2robot.backbones import FrozenViT


@pytest.fixture(autouse=True)
def two() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_thread_within_and_the_usual_number_after() -> None:
    with threads.one_thread():
        assert (torch.get_num_threads(), threads.usual()) == (1, 2)
        with threads.one_thread():
            assert (torch.get_num_threads(), threads.usual()) == (1, 2)
        assert (torch.get_num_threads(), threads.usual()) == (1, 2)
    assert (torch.get_num_threads(), threads.usual()) == (2, 2)
    with pytest.raises(ZeroDivisionError), threads.one_thread():
        raise ZeroDivisionError
    assert (torch.get_num_threads(), threads.usual()) == (2, 2)


def test_a_thread_that_began_while_others_were_within_does_not_keep_their_one() -> None:
    inside, begun = threading.Event(), threading.Event()
    counts: list[int] = []

    def within() -> None:
        with threads.one_thread():
            inside.set()
            begun.wait()

    def later() -> None:
        inside.wait()
        torch.rand(400, 400).exp()  # by as many threads as it finds
        begun.set()
        first.join()
        with threads.one_thread():
            counts.append(threads.usual())
        counts.append(torch.get_num_threads())

    first, second = threading.Thread(target=within), threading.Thread(target=later)
    for thread in (first, second):
        thread.start()
    second.join()
    assert counts == [2, 2] and (torch.get_num_threads(), threads.usual()) == (2, 2)


def test_whoever_leaves_first_gets_its_threads_back() -> None:
    """Under OpenMP each Python thread has a count of its own, which no other can set."""
    started, inside, left = (threading.Barrier(2) for _ in range(3))
    counts: dict[str, list[int]] = {"first": [], "last": []}

    def work(name: str) -> None:
        counts[name].append(torch.get_num_threads())
        started.wait()
        with threads.one_thread():
            counts[name].append(torch.get_num_threads())
            inside.wait()
            if name == "last":
                left.wait()
        counts[name].append(torch.get_num_threads())
        if name == "first":
            left.wait()

    both = [threading.Thread(target=work, args=(name,)) for name in counts]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert counts == {"first": [2, 1, 2], "last": [2, 1, 2]}
    assert (torch.get_num_threads(), threads.usual()) == (2, 2)


def test_torch_steps_aside_where_another_engine_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    counts: list[int] = []

    def maker(backbone: FrozenViT, *_: Any) -> engines.Runner:
        return lambda tiles: counts.append(torch.get_num_threads()) or backbone(tiles)  # type: ignore[func-returns-value]

    monkeypatch.setitem(engines._MAKERS, "openvino", maker)
    by_torch = eye(see=lambda images: counts.append(torch.get_num_threads()) or images[:, :1])
    for encoder, expected in ((small_encoder(engine="openvino"), 1), (by_torch, 2)):
        for encode in (encoder, encoder.stream("front"), encoder.memory()):
            counts.clear()
            encode(random_frames(64, 64, 3))
            assert set(counts) == {expected} and torch.get_num_threads() == 2
