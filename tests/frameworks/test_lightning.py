"""GradualPruning as a callback of Lightning itself, which it does not import."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    from lightning.pytorch.callbacks import ModelCheckpoint

from torch import nn  # noqa: E402

import emp_torch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning warns of what it advises
RAMP = {"sparsity": 0.75, "begin": 2, "steps": 5, "every": 6}


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("loss", self.training_step(batch, 0))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class ByHand(Net):
    """A module that steps its optimizer itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, _):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, 0))
        optimizer.step()

    def validation_step(self, batch, _):
        pass


def loader():
    x = torch.randn(128, 10, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8)


def fit(model, callbacks, start=None, **options):
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        **{"max_epochs": 3, "enable_checkpointing": False, **options},
    )  # fmt: skip
    trainer.fit(model, loader(), loader(), ckpt_path=start)


@pytest.mark.parametrize(
    ("kind", "options", "steps"),
    [
        (Net, {}, 48), (Net, {"accumulate_grad_batches": 4, "max_epochs": 10}, 40), (ByHand, {}, 48),
        (Net, {"precision": "bf16-mixed"}, 48), (Net, {"gradient_clip_val": 1.0}, 48),
    ],
    ids=["plain", "accumulating", "by hand", "bfloat16", "clipping"],
)  # fmt: skip
def test_it_prunes_while_the_trainer_trains(kind, options, steps):
    torch.manual_seed(0)
    model, callback = kind(), emp_torch.GradualPruning("net", **RAMP)
    fit(model, [callback], **options)
    assert callback.pruner.steps_done == steps
    assert callback.pruner.sparsity == 0.75
    assert emp_torch.verify(model.net) == ()


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path):
    torch.manual_seed(0)
    whole, callback = Net(), emp_torch.GradualPruning("net", **RAMP)
    kept = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(whole, [callback, kept], enable_checkpointing=True)
    again, resumed = Net(), emp_torch.GradualPruning("net", **RAMP)
    fit(again, [resumed], start=tmp_path / "epoch=0.ckpt")
    assert resumed.pruner.steps_done == callback.pruner.steps_done == 48
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    plain = Net.load_from_checkpoint(tmp_path / "epoch=2.ckpt")
    assert int((plain.net[0].weight == 0).sum()) == 240
