"""Heads of models of the transformers package: found, scored, and removed without a change of what comes out."""

from __future__ import annotations

import copy
import warnings

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    hf = pytest.importorskip("transformers", reason="transformers is not installed")

import emp_torch  # noqa: E402
from emp_core import ArgumentError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 64}
WORDS, PICTURES = torch.arange(18).reshape(2, 9) + 5, torch.linspace(-1, 1, 6144).reshape(2, 3, 32, 32)


def text(model, config, **options):
    return getattr(hf, model)(getattr(hf, config)(vocab_size=99, **options)), {"input_ids": WORDS}


def picture(model, config, **options):
    return getattr(hf, model)(getattr(hf, config)(image_size=32, **options)), {"pixel_values": PICTURES}


SHARED = {**SMALL, "num_key_value_heads": 3}
BART = {"d_model": 48, **{f"{p}_{n}": v for p in ("encoder", "decoder")
        for n, v in (("layers", 2), ("attention_heads", 6), ("ffn_dim", 64))}}  # fmt: skip
MODELS = {
    "bert": (lambda: text("BertModel", "BertConfig", **SMALL), 2),
    "roberta": (lambda: text("RobertaModel", "RobertaConfig", **SMALL), 2),
    "distilbert": (
        lambda: text("DistilBertModel", "DistilBertConfig", dim=48, n_layers=2, n_heads=6, hidden_dim=64),
        2,
    ),
    "gpt2": (lambda: text("GPT2LMHeadModel", "GPT2Config", n_embd=48, n_layer=2, n_head=6), 2),
    "llama": (lambda: text("LlamaForCausalLM", "LlamaConfig", **SHARED), 2),
    "mistral": (lambda: text("MistralForCausalLM", "MistralConfig", **SHARED), 2),
    "qwen2": (lambda: text("Qwen2ForCausalLM", "Qwen2Config", **SHARED), 2),
    "bart": (lambda: text("BartForConditionalGeneration", "BartConfig", **BART), 6),
    "vit": (lambda: picture("ViTModel", "ViTConfig", patch_size=8, **SMALL), 2),
    "clip": (lambda: picture("CLIPVisionModel", "CLIPVisionConfig", patch_size=8, **SMALL), 2),
    "beit": (
        lambda: picture("BeitModel", "BeitConfig", patch_size=8, use_relative_position_bias=True, **SMALL),
        2,
    ),
    "swin": (
        lambda: picture("SwinModel", "SwinConfig", patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 4],
                        window_size=4),
        2,
    ),
}  # fmt: skip


def made(name):
    torch.manual_seed(0)
    model, given = MODELS[name][0]()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval(), given


def out(model, given):
    found = model(**given)
    return found.last_hidden_state if "last_hidden_state" in found else found.logits


@pytest.mark.parametrize("name", list(MODELS))
def test_removal_changes_shapes_and_no_output(name):
    model, given = made(name)
    blocks = emp_torch.find_heads(model)
    assert len(blocks) == MODELS[name][1]
    assert all(bool((s > 0).all()) for s in emp_torch.head_scores(blocks).values())
    taylor = emp_torch.head_scores(blocks, batches=[given], loss=lambda b: out(model, b).square().mean())
    assert taylor.keys() == {h.name for h in blocks}
    zeroed, removed = copy.deepcopy(model), copy.deepcopy(model)
    for heads, others in zip(emp_torch.find_heads(zeroed), emp_torch.find_heads(removed), strict=True):
        keep = (torch.arange(heads.kv_count) % 2 == 0).repeat_interleave(heads.count // heads.kv_count)
        emp_torch.zero_heads(heads, keep)
        emp_torch.remove_heads(removed, others, keep)
    assert sum(p.numel() for p in removed.parameters()) < sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        expected = out(zeroed, given)
        torch.testing.assert_close(out(removed, given), expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(out(model, given), expected, atol=1e-3)
    if name in ("gpt2", "llama", "mistral", "qwen2"):
        for smaller in (zeroed, removed):
            smaller.generation_config.pad_token_id = 0
        words = [m.generate(WORDS, max_new_tokens=4, do_sample=False) for m in (zeroed, removed)]
        assert torch.equal(*words)


def test_a_block_whose_position_bias_is_shared_keeps_its_heads():
    torch.manual_seed(0)
    model = hf.T5EncoderModel(hf.T5Config(vocab_size=99, d_model=48, d_kv=8, d_ff=64, num_layers=2, num_heads=6))
    heads, _ = emp_torch.find_heads(model)
    with pytest.raises(ArgumentError, match="zero_heads leaves the shapes"):
        emp_torch.remove_heads(model, heads, torch.arange(6) > 1)
    before = model(input_ids=WORDS).last_hidden_state
    emp_torch.zero_heads(heads, torch.arange(6) > 1)
    assert not torch.allclose(model(input_ids=WORDS).last_hidden_state, before)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_weights_are_found_and_pruned(name):
    model, given = made(name)
    plan = emp_torch.prune(model, scope="row")
    assert len(plan.entries) >= 8
    assert 0.2 < plan.total.sparsity < 0.6
    assert emp_torch.verify(model) == ()
    assert torch.isfinite(out(model, given)).all()
