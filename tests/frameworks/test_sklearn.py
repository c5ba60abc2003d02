"""emp_sklearn: scikit-learn's own checks, and the count of the core."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

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


@pytest.mark.parametrize("score", [f_classif, chi2, "variance", "norm"], ids=str)
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
