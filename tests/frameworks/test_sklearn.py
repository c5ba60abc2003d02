"""emp_sklearn: scikit-learn's own checks, and the count of the core."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.feature_selection import SelectKBest, chi2, f_classif
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import estimator_checks_generator

import emp_core
import emp_sklearn
from emp_sklearn import EffectiveSelector


def named(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of checks about what they skip
        return [(estimator, check) for estimator, check in estimator_checks_generator(estimator)]


CHECKS = [*named(EffectiveSelector()), *named(EffectiveSelector("variance"))]


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("score", [f_classif, chi2, "variance", "norm"], ids=["f_classif", "chi2", "variance", "norm"])
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_it_keeps_what_the_core_keeps(score, beta):
    x, y = load_digits(return_X_y=True)
    x = x[:, x.std(axis=0) > 0]
    selector = EffectiveSelector(score, beta=beta).fit(x, y)
    assert selector.n_selected_ == emp_core.keep_count(selector.scores_, beta=beta)
    assert np.array_equal(selector.get_support(), emp_core.select(selector.scores_, beta=beta).mask)
    if not isinstance(score, str):
        best = SelectKBest(score, k=selector.n_selected_).fit(x, y)
        assert np.isclose(best.scores_[best.get_support()].min(), selector.scores_[selector.get_support()].min())
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    again = EffectiveSelector(score, beta=beta).fit(sparse.csr_matrix(x), y)
    np.testing.assert_allclose(again.scores_, selector.scores_, rtol=1e-9, atol=1e-9)


def exact_variance(column):
    """In rational arithmetic, rounded once."""
    values = [Fraction(v) for v in column.tolist()]
    mean = sum(values) / len(values)
    return float(sum((v - mean) ** 2 for v in values) / len(values))


@st.composite
def tables(draw):
    """Columns about a centre that may dwarf their spread; some constant, some mostly zeros, of any real dtype."""
    rows, columns = draw(st.integers(2, 12)), draw(st.integers(1, 4))
    kind = np.dtype(draw(st.sampled_from(["float32", "float64", "int8", "int32", "bool"])))
    values = np.empty((rows, columns), kind)
    for j in range(columns):
        if kind.kind == "f":
            centre = draw(st.sampled_from([0.0, 0.1, -3e4, 1e8, 1e30, -1e-30]))
            steps = draw(st.sampled_from([0.0, 1.0, 1e-3, 1e6])) * max(1.0, abs(centre) * np.finfo(kind).eps)
            offsets = draw(st.lists(st.floats(-1, 1), min_size=rows, max_size=rows))
            values[:, j] = centre + steps * np.array(offsets)
        else:
            low, high = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
            values[:, j] = draw(st.lists(st.integers(low, high), min_size=rows, max_size=rows))
    if draw(st.booleans()):
        values *= np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))[:, None]
    return values


@given(tables())
def test_variances_and_norms_are_the_rational_ones(x):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    variances = [exact_variance(column) for column in x.T]
    norms = [math.sqrt(sum(Fraction(v) ** 2 for v in column.tolist())) for column in x.T]
    for given_as in (x, np.asfortranarray(x), sparse.csr_matrix(x), sparse.csc_matrix(x), sparse.csr_array(x)):
        found = EffectiveSelector("variance").fit(given_as).scores_
        np.testing.assert_allclose(found, variances, rtol=1e-12)
        np.testing.assert_allclose(EffectiveSelector("norm").fit(given_as).scores_, norms, rtol=1e-12)


@pytest.mark.parametrize(("centre", "dtype"), [(1e4, np.float32), (1e8, np.float64)])
def test_variances_of_features_far_from_zero(centre, dtype, monkeypatch):
    """A mean of squares less a squared mean has lost them: 73.9, 62.9 and 0 for float32 about 1e4."""
    from emp_sklearn import columns

    x = (centre + np.random.default_rng(0).standard_normal((2000, 3)) * [1, 2, 3]).astype(dtype)
    for stretch in (columns.STRETCH, 100):  # all at once, and piece by piece
        monkeypatch.setattr(columns, "STRETCH", stretch)
        np.testing.assert_allclose(
            EffectiveSelector("variance").fit(x).scores_, np.var(x.astype(np.float64), axis=0), rtol=1e-9
        )


def test_variances_of_sparse_tables_count_zeros_that_are_not_stored(monkeypatch):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    from emp_sklearn import columns

    monkeypatch.setattr(columns, "STRETCH", 7)
    r = np.random.default_rng(0)
    x = (1e6 + r.standard_normal((60, 5))) * (r.random((60, 5)) < [0, 0.1, 0.5, 0.9, 1])
    for given_as in (sparse.csr_matrix(x), sparse.csc_matrix(x)):
        np.testing.assert_allclose(EffectiveSelector("variance").fit(given_as).scores_, np.var(x, axis=0), rtol=1e-9)
    twice = sparse.csr_matrix((np.array([1.0, 2.0, 5.0]), np.zeros(3, np.int32), np.array([0, 2, 3, 3])), shape=(3, 1))
    assert EffectiveSelector("norm").fit(twice).scores_[0] == pytest.approx(math.sqrt(34))  # 1 + 2 in one place


def test_scores_of_features_whose_squares_overflow():
    x = np.array([[1.7e308, 1e200, 1e-200], [-1.7e308, 3e200, 1e-200]])
    np.testing.assert_allclose(
        EffectiveSelector("norm").fit(x).scores_, np.array([np.inf, 10**0.5 * 1e200, 2**0.5 * 1e-200])
    )
    assert EffectiveSelector("variance").fit(x).scores_.tolist() == [np.inf, np.inf, 0]


def test_in_a_pipeline():
    x, y = load_iris(return_X_y=True)
    model = make_pipeline(EffectiveSelector(), DecisionTreeClassifier(random_state=0)).fit(x, y)
    assert model.score(x, y) > 0.95
    assert list(model[0].get_feature_names_out(["a", "b", "c", "d"])) == ["c", "d"]
    assert clone(model[0]).get_params() == {"score_func": f_classif, "beta": 1.0, "order": 2.0}


@pytest.mark.filterwarnings("ignore:(Features|divide by zero|invalid value).*")
def test_constant_and_perfect_features():
    x = np.array([[0.0, 1.0, 5.0], [0.0, 2.0, 5.0], [1.0, 1.0, 5.0], [1.0, 2.0, 5.0]])
    selector = EffectiveSelector().fit(x, [0, 0, 1, 1])
    assert selector.get_support().tolist() == [True, False, False]
    with pytest.raises(emp_core.ArgumentError, match="must give 3 scores"):
        EffectiveSelector(lambda x, y: np.ones(2)).fit(x, [0, 0, 1, 1])
    with pytest.raises(emp_core.ArgumentError, match="variance or norm, got 'magic'"):
        EffectiveSelector("magic").fit(x)
    with pytest.raises(ValueError, match="beta must be"):
        EffectiveSelector("norm", beta=0).fit(x)


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_perceptrons(kind, scope):
    x, y = load_digits(return_X_y=True)
    model = kind(hidden_layer_sizes=(12,), max_iter=3, random_state=0).fit(x, y)
    before = [c.copy() for c in model.coefs_]
    made = emp_sklearn.prune(model, scope=scope)
    named = {f"coefs_.{i}": c for i, c in enumerate(before)}
    if scope == "model":
        masks = emp_core.select(named, scope="model").mask
    else:
        masks = {n: emp_core.select(c, scope="columns" if scope == "row" else "whole").mask for n, c in named.items()}
    for (name, mask), found, old in zip(masks.items(), model.coefs_, before, strict=True):
        assert np.array_equal(found, np.where(mask, old, 0)), name
    assert emp_sklearn.verify(model) == ()
    assert made.total.k == sum(int(m.sum()) for m in masks.values())
    model.predict(x)
    model.coefs_[0][0, 0] += 1
    assert emp_sklearn.verify(model)
    with pytest.raises(emp_core.ArgumentError, match="made from other values"):
        emp_sklearn.apply(model, made)
    with pytest.raises(emp_core.ArgumentError, match="must be a fitted perceptron"):
        emp_sklearn.plan(kind())
    with pytest.raises(emp_core.ArgumentError, match="got one without"):
        emp_sklearn.verify(kind(max_iter=1).fit(x, y))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_perceptrons_whose_arrays_are_read_only():
    x, y = load_digits(return_X_y=True)
    model = MLPClassifier((12,), max_iter=3, random_state=0).fit(x, y)
    held, before = model.coefs_, [c.copy() for c in model.coefs_]
    for c in held[1:]:
        c.flags.writeable = False
    made = emp_sklearn.prune(model)
    assert emp_sklearn.verify(model) == ()
    for old, was, new, mask in zip(held, before, model.coefs_, made.masks.values(), strict=True):
        assert np.array_equal(old, was)
        assert np.array_equal(new, np.where(mask, was, 0))
    model.partial_fit(x, y)
