"""Attention heads: slices, scores, and removal that changes shapes but no output."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

import emp_torch  # noqa: E402
from emp_core import ArgumentError, select  # noqa: E402


class Llama(nn.Module):
    """In the shape of Llama's attention: fewer key heads than query heads."""

    def __init__(self, width=24, heads=6, kv=3, size=4):
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = heads, kv, size
        self.q_proj = nn.Linear(width, heads * size, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(width, kv * size, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(heads * size, width, bias=False)

    def forward(self, x):
        q, k, v = (
            f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = (t.repeat_interleave(self.num_heads // self.num_key_value_heads, 1) for t in (k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Bert(nn.Module):
    """In the shape of BERT's self-attention, output layer included."""

    def __init__(self, width=24, heads=6):
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = heads, width // heads, width
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        shape = (self.num_attention_heads, self.attention_head_size)
        q, k, v = (f(x).unflatten(-1, shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        assert y.shape[-1] == self.all_head_size
        return self.dense(y)


class Apart(nn.Module):
    """In the shape of BERT as it is: query, key and value in one module, the output layer in another beside it; and a
    bias of positions with a column for each head, as Swin has."""

    def __init__(self):
        super().__init__()
        inner = nn.Module()
        inner.num_attention_heads, inner.attention_head_size, inner.all_head_size = 6, 4, 24
        inner.query, inner.key, inner.value = (nn.Linear(24, 24) for _ in range(3))
        inner.relative_position_bias_table = nn.Parameter(torch.randn(7 * 7, 6))
        self.add_module("self", inner)
        self.output = nn.Module()
        self.output.dense = nn.Linear(24, 24)

    def forward(self, x):
        inner = getattr(self, "self")  # noqa: B009
        shape = (inner.num_attention_heads, inner.attention_head_size)
        q, k, v = (f(x).unflatten(-1, shape).transpose(1, 2) for f in (inner.query, inner.key, inner.value))
        bias = inner.relative_position_bias_table.T.reshape(-1, 7, 7)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        assert y.shape[-1] == inner.all_head_size
        return self.output.dense(y)


class Conv1D(nn.Module):
    """GPT-2's linear layer, with its weight transposed."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.1), nn.Parameter(torch.randn(nf) * 0.1)

    def forward(self, x):
        return x @ self.weight + self.bias


class Gpt2(nn.Module):
    """In the shape of GPT-2's attention."""

    def __init__(self, width=24, heads=6):
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = heads, width // heads, width
        self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)

    def forward(self, x):
        q, k, v = (
            t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in self.c_attn(x).split(self.split_size, 2)
        )
        return self.c_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Plain(nn.Module):
    """nn.MultiheadAttention as a block."""

    def __init__(self, **options):
        super().__init__()
        self.inner = nn.MultiheadAttention(24, 6, batch_first=True, **options)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


BLOCKS = {
    "llama": Llama,
    "bert": Bert,
    "apart": Apart,
    "gpt2": Gpt2,
    "plain": Plain,
    "no bias": lambda: Plain(bias=False),
}


class Model(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.attention, self.out = block, nn.Linear(24, 3)

    def forward(self, x):
        return self.out(x + self.attention(x))


def made(name):
    torch.manual_seed(0)
    return Model(BLOCKS[name]()).eval()


def half(heads):
    """Every second group of heads that share a key."""
    return (torch.arange(heads.kv_count) % 2 == 0).repeat_interleave(heads.count // heads.kv_count)


@pytest.mark.parametrize("name", list(BLOCKS))
def test_removal_changes_shapes_and_no_output(name):
    zeroed, removed, x = made(name), made(name), torch.randn(2, 7, 24)
    (heads,) = emp_torch.find_heads(zeroed)
    assert heads.count == 6
    whole = zeroed(x)
    keep = half(heads)
    emp_torch.zero_heads(heads, keep)
    (heads,) = emp_torch.find_heads(removed)
    before = sum(p.numel() for p in removed.parameters())
    emp_torch.remove_heads(removed, heads, keep)
    torch.testing.assert_close(zeroed(x), removed(x))
    assert not torch.allclose(whole, zeroed(x))
    assert sum(p.numel() for p in removed.parameters()) < before
    removed(x).sum().backward()
    if name not in ("plain", "no bias"):
        (again,) = emp_torch.find_heads(removed)
        assert again.count == int(keep.sum())


@pytest.mark.parametrize("name", list(BLOCKS))
def test_all_kept_is_nothing_changed(name):
    model, x = made(name), torch.randn(2, 7, 24)
    before = model(x)
    (heads,) = emp_torch.find_heads(model)
    emp_torch.zero_heads(heads, torch.ones(6, dtype=torch.bool))
    assert torch.equal(model(x), before)
    emp_torch.remove_heads(model, heads, torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("name", list(BLOCKS))
def test_a_head_that_was_zeroed_has_no_score(name):
    model = made(name)
    (heads,) = emp_torch.find_heads(model)
    assert (emp_torch.head_scores([heads])[heads.name] > 0).all()
    keep = half(heads)
    emp_torch.zero_heads(heads, keep)
    scores = emp_torch.head_scores([heads])[heads.name]
    assert torch.equal(scores > 0, keep)
    batches = [torch.randn(2, 7, 24) for _ in range(3)]
    taylor = emp_torch.head_scores([heads], batches=batches, loss=lambda x: model(x).square().mean())[heads.name]
    assert torch.equal(taylor > 0, keep)
    assert select({heads.name: scores}, scope="model").mask[heads.name][~keep].sum() == 0


def test_taylor_is_the_gradient_of_a_gate():
    """|∂L/∂ξ| by a second, slow way: a gate on the head's slice of the output weight, differentiated by autograd."""
    model, x = made("llama"), torch.randn(2, 7, 24)
    (heads,) = emp_torch.find_heads(model)
    found = emp_torch.head_scores([heads], batches=[x], loss=lambda x: model(x).square().mean())[heads.name]
    gate = torch.ones(6, requires_grad=True)
    gated = copy.deepcopy(model)
    weight = gated.attention.o_proj.weight.detach() * gate.repeat_interleave(4)
    del gated.attention.o_proj.weight
    gated.attention.o_proj.weight = weight
    gated(x).square().mean().backward()
    torch.testing.assert_close(found, gate.grad.abs().double(), rtol=1e-4, atol=1e-7)


def test_scores_by_hand():
    model = made("bert")
    (heads,) = emp_torch.find_heads(model)
    block, size = model.attention, 4
    for h in range(6):
        mine = slice(h * size, (h + 1) * size)
        rows = [getattr(block, name).weight[mine] for name in ("query", "key", "value")]
        everything = torch.cat([t.reshape(-1) for t in [*rows, block.dense.weight[:, mine]]]).double()
        torch.testing.assert_close(emp_torch.head_scores([heads])[heads.name][h], everything.norm())
        torch.testing.assert_close(emp_torch.head_scores([heads], norm=1)[heads.name][h], everything.abs().sum())


def test_masks_and_sequences_of_the_smaller_block():
    torch.manual_seed(0)
    for batch_first in (True, False):
        whole = nn.MultiheadAttention(12, 3, batch_first=batch_first, kdim=5, vdim=7).eval()
        (heads,) = emp_torch.find_heads(whole)
        keep = torch.tensor([True, False, True])
        smaller = emp_torch.remove_heads(whole, heads, keep)
        emp_torch.zero_heads(heads, keep)
        q, k, v = torch.randn(2, 4, 12), torch.randn(2, 6, 5), torch.randn(2, 6, 7)
        padding = torch.zeros(2, 6, dtype=torch.bool)
        padding[:, 4:] = True
        if not batch_first:
            q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        for mask in (None, torch.rand(4, 6) > 0.7, torch.randn(4, 6)):
            given = {"key_padding_mask": padding, "attn_mask": mask}
            if mask is not None and mask.dtype != torch.bool:
                given["key_padding_mask"] = torch.zeros(2, 6).masked_fill(padding, float("-inf"))
            expected, _ = whole(q, k, v, **given, average_attn_weights=False)
            found, weights = smaller(q, k, v, **given, average_attn_weights=False)
            torch.testing.assert_close(found, expected)
            assert weights.shape == (2, 2, 4, 6)


def test_inside_a_stock_encoder_layer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 6, 32, batch_first=True).eval()
    x, same = torch.randn(2, 5, 24), copy.deepcopy(layer)
    keep = torch.tensor([True, False, True, True, False, False])
    emp_torch.zero_heads(emp_torch.find_heads(layer)[0], keep)
    emp_torch.remove_heads(same, emp_torch.find_heads(same)[0], keep)
    with torch.no_grad():
        torch.testing.assert_close(same(x), layer(x))


def test_wrong_arguments():
    model = made("llama")
    (heads,) = emp_torch.find_heads(model)
    with pytest.raises(ArgumentError, match="must be 6 booleans"):
        emp_torch.zero_heads(heads, [True])
    with pytest.raises(ArgumentError, match="at least one head"):
        emp_torch.remove_heads(model, heads, torch.zeros(6, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="all or none of the 2 heads of attention that share a key"):
        emp_torch.remove_heads(model, heads, torch.arange(6) > 0)
    with pytest.raises(ArgumentError, match="come together"):
        emp_torch.head_scores([heads], batches=[1])
    with pytest.raises(ArgumentError, match="must depend on every block"):
        emp_torch.head_scores([heads], batches=[torch.ones(1)], loss=lambda x: model.out.weight.sum())


def test_blocks_that_are_not_known_are_named_with_the_reason():
    class SelfAttention(nn.Module):
        def __init__(self, *names, heads=2):
            super().__init__()
            if heads:
                self.num_heads = heads
            for name in names:
                setattr(self, name, nn.Linear(8, 8))

    model = nn.ModuleDict({
        "one": SelfAttention("query_key_value", "dense"),
        "two": SelfAttention("in_q", "in_k", "in_v", "out"),
        "three": SelfAttention("q_proj", "k_proj", "v_proj", "o_proj", heads=0),
        "four": SelfAttention("q_proj", "k_proj", "v_proj", "o_proj"),
    })  # fmt: skip
    with pytest.warns(UserWarning, match="not listed") as seen:
        assert [heads.name for heads in emp_torch.find_heads(model)] == ["four"]
    (said,) = (str(w.message) for w in seen)
    assert "one keeps queries, keys and values in one layer, 'query_key_value'" in said
    assert "two has layers of names that are not known: in_q, in_k, in_v, out" in said
    assert "three does not say how many heads it has" in said
    assert "four" not in said


@pytest.mark.parametrize("name", ["plain", "bert", "gpt2"])
def test_what_was_frozen_stays_frozen(name):
    model = made(name)
    (heads,) = emp_torch.find_heads(model)
    for part in "qvo":
        heads.parts[part].parameter.requires_grad_(False)
        if heads.parts[part].bias is not None:
            heads.parts[part].bias.requires_grad_(False)
    frozen = {p: heads.parts[p].parameter.requires_grad for p in "qkvo"}
    block = emp_torch.remove_heads(model, heads, half(heads))
    if name == "plain":
        layers = {"q": block.q_proj, "k": block.k_proj, "v": block.v_proj, "o": block.out_proj}
        assert {p: layer.weight.requires_grad for p, layer in layers.items()} == frozen
        assert not any(layer.bias is not None and layer.bias.requires_grad for layer in layers.values())
        return
    assert {p: heads.parts[p].parameter.requires_grad for p in "qkvo"} == frozen
    assert not any(heads.parts[p].bias is not None and heads.parts[p].bias.requires_grad for p in "qvo")


def test_a_stock_encoder_takes_padding_without_some_heads():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 4, 16, batch_first=True), 2).eval()
    whole, keep = copy.deepcopy(model), torch.tensor([True, False, True, True])
    padded = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    whole.use_nested_tensor = False  # only because torch warns of nested tensors
    for ours, theirs in zip(emp_torch.find_heads(model), emp_torch.find_heads(whole), strict=True):
        emp_torch.remove_heads(model, ours, keep)
        emp_torch.zero_heads(theirs, keep)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        out, expected = (m(x, src_key_padding_mask=padded) for m in (model, whole))
    torch.testing.assert_close(out[~padded], expected[~padded])


def test_masked_blocks():
    layer = nn.TransformerEncoderLayer(8, 4, 16)
    attention, keep = layer.self_attn, torch.tensor([True, False, True, True])
    emp_torch.effective_unstructured(attention, "in_proj_weight")
    (heads,) = emp_torch.find_heads(layer)
    plain = nn.TransformerEncoderLayer(8, 4, 16)
    plain.self_attn.in_proj_weight.data = attention.in_proj_weight.detach().clone()
    plain.self_attn.out_proj.load_state_dict(attention.out_proj.state_dict())
    expected = emp_torch.head_scores(emp_torch.find_heads(plain))
    torch.testing.assert_close(emp_torch.head_scores([heads]), expected)
    with pytest.raises(ArgumentError, match=r"in_proj_weight of MultiheadAttention is masked; torch\.nn\.utils\.prune"):
        emp_torch.remove_heads(layer, heads, keep)
    emp_torch.zero_heads(heads, keep)
    assert bool((attention.in_proj_weight[2:4] == 0).all())
    normed = nn.TransformerEncoderLayer(8, 4, 16)
    nn.utils.parametrizations.weight_norm(normed.self_attn, "in_proj_weight")
    for call in (lambda h: emp_torch.head_scores([h]), lambda h: emp_torch.remove_heads(normed, h, keep)):
        with pytest.raises(ArgumentError, match="in_proj_weight of ParametrizedMultiheadAttention is computed from"):
            call(emp_torch.find_heads(normed)[0])
