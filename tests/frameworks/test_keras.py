"""emp_keras on whatever backend is there."""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("keras") is None:
    pytest.skip("Keras is not installed", allow_module_level=True)
backend = next((name for name in ("torch", "jax", "tensorflow") if find_spec(name)), None)
if backend is None:
    pytest.skip("no backend of Keras is installed", allow_module_level=True)
os.environ.setdefault("KERAS_BACKEND", backend)

keras = pytest.importorskip("keras", reason="Keras is not installed")

import emp_core  # noqa: E402
import emp_keras  # noqa: E402
from tests.frameworks.wrong_ramps import WRONG  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of Keras about its backends


def network(seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([
        keras.Input((8, 8, 3)), keras.layers.Conv2D(6, 3, name="conv"), keras.layers.BatchNormalization(),
        keras.layers.Flatten(), keras.layers.Dense(4, name="dense"),
    ])  # fmt: skip
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
    return model


@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
def test_what_is_kept_is_what_the_core_selects(scope):
    model = network()
    before = {path: np.array(keras.ops.convert_to_numpy(v)) for path, v in emp_keras.find_weights(model).items()}
    assert list(before) == ["conv/kernel", "dense/kernel"]
    made = emp_keras.prune(model, scope=scope, beta=0.8)
    if scope == "model":
        masks = emp_core.select(before, scope="model", beta=0.8).mask
    else:
        masks = {
            p: emp_core.select(a, scope="columns" if scope == "row" else "whole", beta=0.8).mask
            for p, a in before.items()
        }
    for path, variable in emp_keras.find_weights(model).items():
        assert np.array_equal(keras.ops.convert_to_numpy(variable), np.where(masks[path], before[path], 0))
    assert type(made).from_json(made.to_json()) == made
    assert emp_keras.verify(model) == ()
    with pytest.raises(emp_core.ArgumentError, match="made from other values"):
        emp_keras.apply(network(1), made)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_types(dtype):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((20,), dtype=dtype), keras.layers.Dense(16, dtype=dtype)])
    made = emp_keras.prune(model)
    (kernel,) = emp_keras.find_weights(model).values()
    assert keras.backend.standardize_dtype(kernel.dtype) == made.entries[0].dtype == dtype
    assert int((keras.ops.convert_to_numpy(keras.ops.cast(kernel, "float32")) != 0).sum()) == made.total.k


def test_files(tmp_path):
    model = network()
    emp_keras.prune(model)
    place = emp_keras.save(model, tmp_path / "m.keras")
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    again = emp_keras.load(place)
    assert np.array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    assert np.array_equal(keras.saving.load_model(place).predict(x, verbose=0), model.predict(x, verbose=0))
    assert emp_keras.certificate_of(again) == emp_keras.certificate_of(model)
    assert [p.name for p in tmp_path.iterdir()] == ["m.keras"]
    network().save(tmp_path / "plain.keras")
    for bad in ("plain.keras", "missing.keras"):
        with pytest.raises(emp_core.ArgumentError, match="must be a file that `save` wrote"):
            emp_keras.load(tmp_path / bad)
    with pytest.raises(emp_core.ArgumentError, match=r"must end in \.keras"):
        emp_keras.save(model, tmp_path / "m.h5")
    model.layers[0].kernel.assign(model.layers[0].kernel * 2)
    with pytest.raises(emp_core.ArgumentError, match="must be as its certificate says"):
        emp_keras.save(model, tmp_path / "m.keras")


@keras.saving.register_keras_serializable("emp_tests")
class Block(keras.layers.Layer):
    """Layers of one name and shape, and two that Keras names."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = [keras.layers.Dense(4, name=name) for name in ("b", "b", None, None)]

    def get_config(self):
        return {"name": self.name}

    def build(self, shape):
        for layer in self.inner:
            layer.build(shape)
        super().build(shape)

    def call(self, x):
        for layer in self.inner:
            x = layer(x)
        return x


def layers_in_layers():
    layers = keras.layers
    return {
        "Bidirectional": (layers.Bidirectional(layers.GRU(3, name="gru"), name="both"), (5, 4), [
            f"both/{way}_gru/gru_cell/{kernel}" for way in ("forward", "backward")
            for kernel in ("kernel", "recurrent_kernel")
        ]),
        "TimeDistributed": (layers.TimeDistributed(layers.Dense(3, name="d"), name="each"), (5, 4), ["each/d/kernel"]),
        "Sequential": (keras.Sequential([layers.Dense(4, name="d")], name="s"), (4,), ["s/d/kernel"]),
        "SpectralNormalization": (layers.SpectralNormalization(layers.Dense(4, name="d"), name="n"), (4,), [
            "n/d/kernel"
        ]),
        "Block": (Block(name="own"), (4,), [
            "own/b/kernel", "own/b/kernel_1", "own/dense/kernel", "own/dense_1/kernel"
        ]),
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(layers_in_layers()))
def test_files_of_layers_in_layers(tmp_path, kind):
    layer, shape, paths = layers_in_layers()[kind]
    model = keras.Sequential([keras.Input(shape), layer])
    assert list(emp_keras.find_weights(model)) == paths
    emp_keras.prune(model)
    again = emp_keras.load(emp_keras.save(model, tmp_path / "m.keras"))
    assert emp_keras.verify(again) == ()
    assert list(emp_keras.find_weights(again)) == paths
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    assert np.array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


def test_states_of_variables_of_one_path():
    model = keras.Sequential([keras.Input((4,)), Block()])
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
    pruning = emp_keras.GradualPruning(sparsity=0.5, begin=1, steps=1, every=1)
    x = np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)
    model.fit(x, x, batch_size=8, epochs=2, verbose=0, callbacks=[pruning])
    first, second = (v for v in model.trainable_variables if v.path.endswith("/b/kernel"))
    assert first.path == second.path
    masks = [mask for path, mask in pruning.masks.items() if "/b/kernel" in path]
    assert not np.array_equal(*masks)
    states = [v for v in model.optimizer.variables if v.name.startswith(first.path.replace("/", "_") + "_")]
    assert len(states) == 4
    for i, state in enumerate(states):
        assert np.array_equal(keras.ops.convert_to_numpy(state) != 0, masks[i // 2])  # two of each, one after the other


@pytest.mark.parametrize("sparsity", [0.8, None])
def test_gradual(sparsity):
    model = network()
    r = np.random.default_rng(0)
    x, y = r.standard_normal((32, 8, 8, 3)).astype(np.float32), r.standard_normal((32, 4)).astype(np.float32)
    pruning = emp_keras.GradualPruning(sparsity=sparsity, begin=2, steps=4, every=2)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(pruning.sparsity)
            for path, variable in emp_keras.find_weights(self.model).items():
                off = ~pruning.masks[path]
                assert not keras.ops.convert_to_numpy(variable)[off].any()
                states = [v for v in self.model.optimizer.variables if tuple(v.shape) == off.shape]
                assert len(states) >= 2
                for state in states:
                    assert not keras.ops.convert_to_numpy(state)[off].any()

    model.fit(x, y, batch_size=8, epochs=4, verbose=0, callbacks=[pruning, Look()])
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[10:] == [seen[10]] * 6
    if sparsity:
        assert abs(seen[-1] - sparsity) < 0.01
        wanted = emp_core.cubic_schedule(0.0, sparsity, begin=2, steps=4, every=2)
        assert np.allclose(seen, [wanted(i + 1) for i in range(16)], atol=0.01)
    else:
        assert 0.1 < seen[-1] < 0.6


def dense():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    model.build((None, 8))
    return model


def zeros(model):
    return float((keras.ops.convert_to_numpy(model.layers[0].kernel) == 0).mean())


def fit(model, *callbacks):
    x = np.random.default_rng(0).standard_normal((56, 8)).astype(np.float32)
    model.fit(x, x[:, :5], batch_size=8, verbose=0, callbacks=list(callbacks))


@pytest.mark.parametrize("together", [1, 2, 4, 7])
def test_gradual_counts_batches_and_not_calls(together):
    model = dense()
    by_hand = together > 1 and keras.backend.backend() == "torch"  # where Keras refuses the option
    model.compile("sgd", "mse", **({} if by_hand else {"steps_per_execution": together}))
    pruning = emp_keras.GradualPruning(sparsity=0.75, begin=3, steps=4, every=2)
    seen = []
    for _ in range(2):
        if by_hand:
            pruning.set_params({"steps": 7})
            pruning.set_model(model)
            pruning.on_train_begin()
            pruning.on_epoch_begin(0)
            for batch in range(0, 7, together):
                pruning.on_train_batch_end(batch + together - 1)
        else:
            fit(model, pruning)
        seen.append((pruning.done, zeros(model)))
    wanted = emp_core.cubic_schedule(0.0, 0.75, begin=3, steps=4, every=2)
    assert seen == [(7, round(40 * wanted(7)) / 40), (14, 0.75)]


@pytest.mark.parametrize(("begin", "wanted"), [(0, [0.3] * 4), (2, [0, 0.3, 0.3, 0.3])])
@pytest.mark.parametrize("sparsity", [0.8, None])
def test_gradual_masks_at_its_beginning(begin, wanted, sparsity):
    pruning, seen = emp_keras.GradualPruning(sparsity=sparsity, begin=begin, steps=2, every=5, initial=0.3), []
    look = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(pruning.sparsity))
    model = dense()
    model.compile("sgd", "mse")
    pruning.set_model(model)
    pruning.on_train_begin()
    assert zeros(model) == (0.3 if begin == 0 else 0)
    fit(model, pruning, look)
    assert np.allclose(seen[:4], wanted)
    assert zeros(model) == round(40 * pruning.sparsity) / 40


def test_gradual_begins_anew_with_another_model():
    pruning = emp_keras.GradualPruning(sparsity=0.5, begin=1, steps=1, every=1)
    for _ in range(2):
        model = dense()
        model.compile("sgd", "mse")
        fit(model, pruning)
        assert (pruning.done, zeros(model)) == (7, 0.5)


def test_gradual_takes_numbers_of_numpy():
    emp_keras.GradualPruning(sparsity=np.float32(0.5), steps=np.int64(2), initial=np.float32(0.1))


@pytest.mark.parametrize(("options", "what"), WRONG)
def test_gradual_names_the_option_that_is_wrong(options, what):
    with pytest.raises(emp_core.ArgumentError, match=what):
        emp_keras.GradualPruning(**options)


def test_wrong_arguments():
    with pytest.raises(emp_core.ArgumentError, match="sparsity must be in"):
        emp_keras.GradualPruning(sparsity=1.0)
    with pytest.raises(emp_core.ArgumentError, match="include must match"):
        emp_keras.plan(network(), include=["zzz"])
    with pytest.raises(emp_core.ArgumentError, match="must be built"):
        emp_keras.plan(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(emp_core.ArgumentError, match="got one without"):
        emp_keras.verify(network())
    recurrent = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4), keras.layers.Dense(2)])
    assert [p.split("/")[-1] for p in emp_keras.find_weights(recurrent)] == ["kernel", "recurrent_kernel", "kernel"]
