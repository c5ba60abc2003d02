"""What threads list together: full or not depends on how much it is, not on who comes first."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from emp_core import select, select_stream
from emp_core._stream import Listed


def test_no_addition_of_any_thread_is_lost() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        for room, full in ((4 * 2000, False), (4 * 2000 - 1, True)):
            listed, barrier = Listed(room), threading.Barrier(4)

            def add(listed: Listed = listed, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                for _ in range(2000):
                    listed.add(1)

            threads = [threading.Thread(target=add) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert listed.full is full
    finally:
        sys.setswitchinterval(before)


class Late(Listed):
    """One whose threads all learn too late that it is full: each lists its chunk in vain."""

    @property
    def full(self) -> bool:
        return self._left < 0 and threading.current_thread() is threading.main_thread()

    @full.setter
    def full(self, value: bool) -> None:
        pass


@pytest.mark.parametrize("kind", [Listed, Late])
def test_a_bracket_given_up_in_the_middle_of_a_sweep_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: type[Listed]
) -> None:
    monkeypatch.setattr("emp_core._stream.Listed", kind)
    monkeypatch.setattr("emp_core._large.Listed", kind)
    scores = np.random.default_rng(0).integers(1, 4, 1 << 23).astype(np.float32)  # ties fill every bracket
    cut = select_stream([scores], sparsity=0.5, threads=4)
    made = select(scores, sparsity=0.5, threads=4)
    expected = np.zeros(scores.size, bool)
    expected[np.argsort(-scores, kind="stable")[: scores.size // 2]] = True
    np.testing.assert_array_equal(cut.mask(scores), expected)
    np.testing.assert_array_equal(made.mask, expected)
    assert (cut.k, cut.mass) == (made.k, made.mass)
