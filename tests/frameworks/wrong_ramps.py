"""Ramps that no framework's gradual pruning takes, and what is said of them."""

__all__ = ["WRONG"]

WRONG = [
    ({"sparsity": 1.2}, r"^sparsity must be in \[0, 1\), or None, got 1\.2$"),
    ({"sparsity": "a"}, r"^sparsity must be in \[0, 1\), or None, got 'a'$"),
    ({"beta": -1}, r"^beta must be a finite number > 0, got -1$"),
    ({"beta": 10**400}, r"^beta must be a finite number > 0, got 1000"),
    ({"initial": 1.0}, r"^initial must be a sparsity"),
    ({"begin": None}, r"^begin must be an integer ≥ 0, got None$"),
    ({"every": 0}, r"^every must be an integer ≥ 1, got 0$"),
    ({"steps": 0, "sparsity": 0.5}, r"^steps must be an integer ≥ 1, got 0$"),
]
