"""Feeds of a decoder's first steps are continued by its own outputs, and others are left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_onnx.runtime.continued import STEPS, TIMES, continued

Feed = dict[str, Any]
DONE = 0


def place(feed: Feed) -> dict[str, Any]:
    """A transducer: at each place it says the letter there, then that it is done with it."""
    src, tgt, t = feed["src"][0], feed["tgt"][0], int(feed["t"][0])
    if t >= len(src):
        raise IndexError("no such place")
    said = DONE if tgt[-1] == src[t] else src[t]
    return {"scores": np.eye(30, dtype=np.float32)[[said]], "pred": np.array([said])}


def first(word: list[int], steps: int) -> list[Feed]:
    out, tgt, t = [], [1], 0
    for _ in range(steps):
        feed = {"src": np.array([word]), "tgt": np.array([tgt]), "t": np.array([t])}
        out.append(feed)
        said = int(place(feed)["pred"][0])
        if said == DONE:
            t += 1
        else:
            tgt = [*tgt, said]
    return out


@given(st.lists(st.lists(st.integers(2, 29), min_size=2, max_size=6, unique=True), min_size=4, max_size=8))
def test_a_transducer_is_followed_to_its_end(words: list[list[int]]) -> None:
    feeds = [feed for word in words for feed in first(word, 2)]
    made = continued(place, feeds)
    known = {word[0] for word in words}
    for feed in made:
        tgt, src, t = feed["tgt"][0].tolist(), feed["src"][0].tolist(), int(feed["t"][0])
        assert tgt == [1, *(s for s in src[: t + 1] if s in known)][: len(tgt)]
    assert len(made) <= TIMES * len(feeds)
    assert len(made) == TIMES * len(feeds) or max(int(feed["t"][0]) for feed in made) == max(map(len, words)) - 1


def test_what_the_feeds_show_counted_is_not_added() -> None:
    feeds = [feed for word in ([5, 6, 7], [6, 7, 5], [7, 5, 6]) for feed in first(word, 4)]
    made = continued(place, feeds)
    assert made[-1]["tgt"].tolist() == [[1, 7, 5, 6]]
    assert made[-1]["t"].tolist() == [2]


def language(feed: Feed) -> dict[str, Any]:
    """The next number, as the largest score of the last entry."""
    tokens = feed["ids"]
    return {"logits": np.eye(50, dtype=np.float32)[(tokens + 1) % 50]}


def test_the_largest_score_of_the_last_entry_is_added() -> None:
    feeds = [{"ids": np.array([[1, *range(2, 2 + n)]], np.int64)} for n in range(5)]
    made = continued(language, feeds)
    assert len(made) == STEPS
    assert made[-1]["ids"][0].tolist() == [n % 50 for n in range(1, 6 + STEPS)]
    assert made[0]["ids"].dtype == np.int64


@pytest.mark.parametrize(
    "feeds",
    [
        [{"x": np.full((1, 3), i, np.float32)} for i in range(9)],  # pictures
        [{"ids": np.arange(n)[None]} for n in (3, 9, 4, 6, 8, 2)],  # texts
        [{"ids": np.array([[1, *[7] * n]])} for n in range(5)],  # grows, by what the model does not say
        [{"ids": np.array([[1, 2]])}, {"ids": np.array([[1, 2, 3]])}],  # too little to tell
        [],
    ],
)
def test_other_feeds_are_left_alone(feeds: list[Feed]) -> None:
    assert continued(lambda feed: language({"ids": np.asarray(next(iter(feed.values())), int)}), feeds) == []
