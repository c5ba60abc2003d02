"""Feature selection in which the number of features is read from their scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin, f_classif
from sklearn.utils.validation import check_is_fitted, validate_data

from emp_core import ArgumentError, select
from emp_sklearn.columns import norms, variances

__all__ = ["EffectiveSelector"]


class EffectiveSelector(SelectorMixin, BaseEstimator):  # type: ignore[misc]
    """Keep the ⌊β·N_eff⌋ features of the largest scores; stands where ``SelectKBest`` does, without a k.

    Args:
        score_func: as for ``SelectKBest``: takes X and y, returns scores or (scores, p-values), e.g. ``f_classif``,
            ``chi2``, ``mutual_info_classif``; or the name of a score of X alone: "variance" or "norm".
        beta: multiplier of the effective size, > 0.
        order: Hill number that counts; 2 is the effective size.

    Scores that are NaN (of constant features) count as 0. Should scores be infinite (classes that a feature separates
    without spread), exactly those features are kept.

    Attributes:
        scores_: score of each feature.
        pvalues_: p-values, where the score function gives them, else None.
        n_eff_: effective size of the scores.
        n_selected_: number of features kept.
        n_features_in_, feature_names_in_: as in all of scikit-learn.

    >>> from sklearn.datasets import load_iris
    >>> x, y = load_iris(return_X_y=True)
    >>> EffectiveSelector().fit(x, y).get_support().tolist()
    [False, False, True, True]
    """

    def __init__(self, score_func: Any = f_classif, *, beta: float = 1.0, order: float = 2.0) -> None:
        self.score_func = score_func
        self.beta = beta
        self.order = order

    def fit(self, X: Any, y: Any = None) -> EffectiveSelector:  # noqa: N803
        """Score the features of X (samples, features) and decide which stay.

        Raises:
            ValueError: y is missing though the score function needs it, or a parameter is out of range.
        """
        alone = isinstance(self.score_func, str)
        if not alone and y is None:
            raise ValueError("This EffectiveSelector estimator requires y to be passed, but the target y is None")
        if alone:
            X = validate_data(self, X, accept_sparse=("csr", "csc"))  # noqa: N806
            found = _of_x(X, str(self.score_func))
        else:
            X, y = validate_data(self, X, y, accept_sparse=("csr", "csc"), multi_output=True)  # noqa: N806
            found = self.score_func(X, y)
        scores, pvalues = found if isinstance(found, (tuple, list)) else (found, None)
        self.scores_ = np.asarray(scores, np.float64)
        self.pvalues_ = None if pvalues is None else np.asarray(pvalues)
        if self.scores_.shape != (self.n_features_in_,):
            raise ArgumentError(
                f"score_func must give {self.n_features_in_} scores, one per feature, got shape {self.scores_.shape}"
            )
        clean = np.nan_to_num(self.scores_, nan=0.0, posinf=np.inf, neginf=-np.inf)
        infinite = np.isinf(clean)
        chosen = select(np.where(infinite, 1.0, 0.0) if infinite.any() else clean, beta=self.beta, order=self.order)
        self._mask = infinite if infinite.any() else chosen.mask
        self.n_eff_, self.n_selected_ = float(chosen.n_eff), int(self._mask.sum())
        return self

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        mask: NDArray[np.bool_] = self._mask
        return mask

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = not isinstance(self.score_func, str)
        tags.input_tags.sparse = True
        return tags


def _of_x(x: Any, name: str) -> NDArray[np.float64]:
    """Scores of features without a target."""
    if name not in ("variance", "norm"):
        raise ArgumentError(f"score_func must be a function, or variance or norm, got {name!r}")
    return variances(x) if name == "variance" else norms(x)
