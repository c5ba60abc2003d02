"""Dataclasses that are made quickly are the same dataclasses."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_core.plans import Figures
from emp_core.quick import quick


@dataclass(frozen=True)
class Slow:
    x: int
    y: tuple[int, ...] = (1,)
    z: str = "z"


@quick
@dataclass(frozen=True)
class Quick:
    x: int
    y: tuple[int, ...] = (1,)
    z: str = "z"


@given(st.integers(), st.tuples(st.integers()), st.text(), st.booleans())
def test_it_is_what_the_dataclass_would_be(x: int, y: tuple[int], z: str, named: bool) -> None:
    one, other = (kind(x, y=y, z=z) if named else kind(x, y, z) for kind in (Slow, Quick))
    assert repr(one)[4:] == repr(other)[5:]
    assert asdict(one) == asdict(other)
    assert hash(one) == hash(other)
    assert other == Quick(x, y, z) == copy.copy(other) == pickle.loads(pickle.dumps(other))
    assert replace(other, x=x + 1) == Quick(x + 1, y, z) != other
    assert asdict(Quick(x)) == asdict(Slow(x))


def test_it_cannot_be_changed_and_takes_nothing_else() -> None:
    with pytest.raises(FrozenInstanceError):
        Quick(1).x = 2  # type: ignore[misc]
    with pytest.raises(TypeError, match="x"):
        Quick()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="other"):
        Quick(1, other=2)  # type: ignore[call-arg]


def test_those_that_inherit_have_their_own() -> None:
    @dataclass(frozen=True)
    class More(Figures):
        name: str

    more = More(4, 2.0, 2, 0.5, 0.7, 0.9, "a")
    assert (more.name, more.density, more.mass_upper) == ("a", 0.5, 0.9)


def test_what_checks_its_values_is_refused() -> None:
    with pytest.raises(TypeError, match="Checked checks what it is given"):

        @quick
        @dataclass(frozen=True)
        class Checked:
            x: int

            def __post_init__(self) -> None:
                raise ValueError
