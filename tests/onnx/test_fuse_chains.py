"""Which convolutions get kernels, where others stand around them."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from emp_onnx.fused.chains import Candidate, worth

DENSITIES = st.floats(0.02, 1.0)
SIZES = st.sampled_from([8, 32, 64, 256])


def line(sizes: list[int], between: str = "Relu") -> tuple[list[Any], dict[str, tuple[int, ...]]]:
    """Convolutions of 3 × 3, one after the other, with one operation between them."""
    nodes, weights, x = [], {}, "x"
    for i, size in enumerate(sizes):
        weights[f"w{i}"] = (size, sizes[max(i - 1, 0)], 3, 3)
        nodes += [
            helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"], pads=[1] * 4),
            helper.make_node(between, [f"c{i}"], [f"r{i}"]),
        ]
        x = f"r{i}"
    return nodes, weights


def candidates(densities: list[float | None]) -> dict[int, Candidate]:
    return {2 * i: Candidate(d, d <= 0.5) for i, d in enumerate(densities) if d is not None}


@given(st.lists(st.tuples(SIZES, st.none() | DENSITIES), min_size=1, max_size=8))
def test_only_candidates_are_chosen_and_none_where_none_gains_alone(chain: list[Any]) -> None:
    nodes, weights = line([size for size, _ in chain])
    given_ones = candidates([density for _, density in chain])
    chosen = worth(nodes, weights, given_ones)
    assert chosen <= given_ones.keys()
    assert not chosen or any(one.alone for one in given_ones.values())


@given(st.lists(st.tuples(SIZES, DENSITIES), min_size=1, max_size=6))
def test_images_of_open_size_are_taken_for_those_of_224(chain: list[Any]) -> None:
    nodes, weights = line([width for width, _ in chain])
    given_ones = candidates([density for _, density in chain])
    assert worth(nodes, weights, given_ones) == worth(nodes, weights, given_ones, {"x": (224, 224)})


def test_calls_cost_more_than_small_images_bring() -> None:
    nodes, weights = line([32] * 3)
    given_ones = candidates([0.3] * 3)
    assert worth(nodes, weights, given_ones, {"x": (9, 9)}) == set()
    assert worth(nodes, weights, given_ones, {"x": (56, 56)}) == {*given_ones}


def test_any_density_will_do_where_winograd_can() -> None:
    nodes, weights = line([64] * 4)
    able = {2 * i: Candidate(0.9, True, transformed=True) for i in range(4)}
    assert worth(nodes, weights, able, {"x": (56, 56)}) == {*able}
    assert worth(nodes, weights, {place: Candidate(0.9, True) for place in able}, {"x": (56, 56)}) == set()


@pytest.mark.parametrize(("size", "wanted"), [(112, {1}), (110, set())])
def test_sizes_are_followed_through_pools(size: int, wanted: set[int]) -> None:
    """56² are left, whose lines begin on cache lines; 55² would have to be copied."""
    pool = helper.make_node("MaxPool", ["x"], ["a"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    nodes, weights = [pool, helper.make_node("Conv", ["a", "w"], ["y"])], {"w": (64, 256, 1, 1)}
    assert worth(nodes, weights, {1: Candidate(0.35, True)}, {"x": (size, size)}) == wanted


@given(st.lists(SIZES, min_size=1, max_size=6), DENSITIES, DENSITIES)
def test_sparser_chains_are_chosen_where_denser_ones_are(sizes: list[int], one: float, other: float) -> None:
    nodes, weights = line(sizes)
    sparse, dense = (worth(nodes, weights, candidates([d] * len(sizes))) for d in sorted((one, other)))
    assert dense <= sparse


@given(st.lists(st.tuples(SIZES, st.none() | DENSITIES), min_size=2, max_size=6), st.data())
def test_chains_are_decided_each_for_itself(chain: list[Any], data: st.DataObject) -> None:
    """What an operation parts that needs plain images is as if it were in a model of its own."""
    sizes, given_ones = [size for size, _ in chain], candidates([density for _, density in chain])
    nodes, weights = line(sizes, between="Softmax")
    i = data.draw(st.integers(0, len(chain) - 1))
    single = worth(nodes[2 * i : 2 * i + 2], weights, {0: given_ones[2 * i]} if 2 * i in given_ones else {})
    assert (2 * i in worth(nodes, weights, given_ones)) == (0 in single)


def test_one_sparse_convolution_among_dense_ones_stays_as_it_is() -> None:
    nodes, weights = line([64] * 9)
    assert worth(nodes, weights, {8: Candidate(0.45, True)}) == set()
    assert worth(nodes, weights, {8: Candidate(0.02, True)}) == {8}  # four times as fast pays for two images


def test_one_denser_convolution_does_not_break_a_sparse_chain() -> None:
    nodes, weights = line([64] * 9)
    densities: list[float | None] = [0.3] * 4 + [0.65] + [0.3] * 4
    assert worth(nodes, weights, candidates(densities)) == set(range(0, 18, 2))


def test_small_ones_do_not_start_a_chain() -> None:
    nodes, weights = line([8, 8])
    assert worth(nodes, weights, {0: Candidate(0.05, False), 2: Candidate(0.05, False)}) == set()


def test_nodes_of_other_domains_part_chains() -> None:
    nodes, weights = line([64, 64])
    chained = worth(nodes, weights, {0: Candidate(0.1, True), 2: Candidate(0.9, False)})
    nodes[1].CopyFrom(onnx.helper.make_node("Relu", ["c0"], ["r0"], domain="elsewhere"))
    assert worth(nodes, weights, {0: Candidate(0.1, True), 2: Candidate(0.9, False)}) == {0}
    assert 0 in chained
