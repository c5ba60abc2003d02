"""Latency at one pace of the processor, at batch 16 too, and what is measured again. Laws, with a clock of our own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from emp_onnx.shrink import latency
from emp_onnx.shrink.search import exchange as exchanging
from emp_onnx.shrink.search.exchange import Clock, Timed


class Core:
    """A processor whose pace follows a script: seconds of the loop, round after round, the last for ever."""

    def __init__(self, script: list[float]) -> None:
        self.script, self.at, self.now = script, 0, 0.0

    def loop(self, _: Any) -> float:
        pace = self.script[min(self.at, len(self.script) - 1)]
        self.at += 1
        self.now += pace
        return pace

    def runner(self, product: float, between: float) -> Any:
        """What takes so long in products, at any pace, and so many loops between them."""

        def run(_: Any) -> None:
            pace = self.script[min(max(self.at - 1, 0), len(self.script) - 1)]
            self.now += product + between * pace

        return run


@given(st.lists(st.sampled_from([5.0, 8.0]), min_size=1, max_size=40), st.floats(1, 50), st.floats(0.1, 4))
@settings(max_examples=60, deadline=None)
def test_runs_at_another_pace_do_not_count_where_there_are_enough_at_the_usual_one(
    script: list[float], product: float, between: float
) -> None:
    core = Core([*script, 5.0])  # fast for ever in the end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PACES", latency.deque([5.0] * 50))
        patch.setattr(latency, "_loop", core.loop)
        patch.setattr(latency.time, "perf_counter", lambda: core.now)
        runners = [core.runner(product, between), core.runner(2 * product, between)]
        found = latency._timed(runners, [{}], 3000.0, lambda: core.now)
    np.testing.assert_allclose(found, [product + between * 5, 2 * product + between * 5], rtol=1e-9)


def test_where_the_usual_pace_is_not_seen_in_time_all_runs_count() -> None:
    core = Core([8.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PACES", latency.deque([5.0] * 50))
        patch.setattr(latency, "_loop", core.loop)
        patch.setattr(latency.time, "perf_counter", lambda: core.now)
        found = latency._timed([core.runner(10.0, 1.0)], [{}], 1.0, lambda: core.now)
    np.testing.assert_allclose(found, [18.0])


def net(batch: int | str) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, [batch, 3])], [helper.make_tensor_value_info("y", 1, [batch, 3])],
    )  # fmt: skip
    return helper.make_model(graph)


@pytest.mark.parametrize(("batch", "first", "count"), [("n", 1, 16), (1, 1, None), ("n", 2, None)])
def test_feeds_are_put_together_where_the_batch_is_open(batch: int | str, first: int, count: int | None) -> None:
    feed = {"x": np.arange(3 * first, dtype=np.float32).reshape(first, 3)}
    found = latency.together(net(batch), feed, 16)
    assert (found is None) == (count is None)
    if found is not None:
        np.testing.assert_array_equal(found["x"], np.tile(feed["x"], (16, 1)))


@given(st.floats(0.1, 1), st.floats(0.1, 1), st.booleans(), st.booleans())
def test_the_larger_share_counts_of_one_feed_and_of_many(one: float, many: float, opened: bool, slow: bool) -> None:
    whole = latency.SLOW if slow else 10.0
    single = lambda models, feeds, **_: [whole, whole * (one if len(feeds[0]["x"]) == 1 else many)]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "latencies", single)
        feeds = [{"x": np.zeros((1, 3), np.float32)}]
        found = latency.share(net("n" if opened else 1), None, feeds, seconds=1.0)
    assert found == pytest.approx(max(one, many) if opened and not slow else one)


def test_what_was_measured_at_another_pace_is_measured_again_and_two_are_their_mean() -> None:
    found, pace = iter([0.5, 0.6, 0.8, 0.7]), [5.0]
    problem: Any = SimpleNamespace(
        masks=lambda counts: {} if sum(counts) < 9 else None, cut=lambda masks: None, finish=lambda model: model,
        source=None, feeds=[],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchanging, "share", lambda *_, **__: next(found))
        patch.setattr(exchanging, "pace", lambda: pace[0])
        clock = Clock(problem, seconds=1.0)
        assert clock.share((9,)) == np.inf
        assert clock.sure((9,), 3.0) == np.inf
        assert [clock.share((1,)), clock.share((1,))] == [0.5, 0.5]
        pace[0] = 8.0
        assert [clock.share((1,)), clock.share((1,))] == [0.6, 0.6]
        assert clock.sure((1,), 3.0) == pytest.approx((0.6 + 3 * 0.8) / 4)


@given(st.lists(st.tuples(st.floats(0.1, 1), st.floats(0.1, 9)), min_size=1, max_size=6))
def test_several_measurements_are_their_mean_by_time(found: list[tuple[float, float]]) -> None:
    both = Timed(*found[0], 1.0)
    for one in found[1:]:
        both = both.also(Timed(*one, 1.0))
    assert both.share == pytest.approx(np.average([s for s, _ in found], weights=[t for _, t in found]))
