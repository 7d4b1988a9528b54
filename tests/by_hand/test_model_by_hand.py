"""Models small enough to count on paper: every matrix, byte and FLOP written out."""

from __future__ import annotations

import pytest

from moesim.attention import AttentionShape
from moesim.model import ModelSpec

# hidden 8, 4 query heads of width 2 over 2 key/value heads; layer 0 is dense, layers 1 and 2 have 4 experts,
# of which a token uses 2; a shared expert with a gate; attention biases on the inputs; norms of queries and keys.
SMALL = {
    "name": "small", "source": "worked on paper", "hidden": 8, "layers": 3, "vocabulary": 10, "context": 64,
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 2, "bias": "qkv", "qk_norm": "head"},
    "dense_ffn": 12,
    "moe": {"layers": "1-2", "experts": 4, "top_k": 2, "ffn": 6, "shared_ffn": 4, "shared_gate": True,
            "gate_bias": True},
    "dtype": {"weights": "bf16", "experts": "mxfp4", "kv": "fp8", "activations": "bf16", "embeddings": "fp32"},
}
# Latent attention: 2 heads; queries through 6, keys and values through 4, positions in 2 more.
LATENT = SMALL | {"attention": {"kind": "mla", "heads": 2, "q_rank": 6, "kv_rank": 4, "nope_dim": 3, "rope_dim": 2,
                                "value_dim": 5}}


def shapes(gemms):
    return [(g.name, g.n, g.k) for g in gemms]


def test_parameters_of_every_part():
    m = ModelSpec.model_validate(SMALL)
    # qkv: (4 + 2 + 2) heads x 2 = 16 outputs from 8 inputs, and 16 biases: 144. out: 8 x 8 = 64. norms: 2 + 2.
    assert m.attention_parameters == 144 + 64 + 4 == 212
    assert m.dense_parameters == 3 * 8 * 12 == 288
    assert m.expert_parameters == 3 * 8 * 6 == 144
    assert m.shared_expert_parameters == 8 + 3 * 8 * 4 == 104       # its gate is 8 x 1
    assert m.gate_gemm.parameters == 4 * 8 + 4 == 36
    assert m.embedding_parameters == 80
    assert m.norm_parameters == 7 * 8 == 56
    # 2 tables 160, norms 56, attention 3 x 212 = 636, dense 288, gates 72, shared 208, experts 8 x 144 = 1152
    assert m.total_parameters == 160 + 56 + 636 + 288 + 72 + 208 + 1152 == 2572
    assert m.active_parameters == 2572 - 4 * 144 == 1996             # two of four experts in each of two layers
    assert m.count_active(["head"]) == 1996 - 80
    assert m.count_active([]) == 1996 - 160


def test_tied_tables_are_counted_once():
    m = ModelSpec.model_validate(SMALL | {"tied_embeddings": True})
    assert m.total_parameters == 2572 - 80
    assert m.active_parameters == m.count_active(["head"]) == 1996 - 80
    assert m.count_active([]) == 1996 - 160


def test_bytes_and_flop():
    m = ModelSpec.model_validate(SMALL)
    assert m.expert_bytes == 144 * 17 / 32 == 76.5                   # 4.25 bit per value
    assert m.expert_flop_per_token == 2 * 144 == 288
    assert m.shared_expert_bytes == 8 * 4 + 96 * 2 == 224            # the gate is kept as the tables are, in fp32
    assert m.shared_expert_flop_per_token == 2 * 104 == 208
    # fp32: 160 in tables, 72 in gates, 16 in shared gates, 56 + 3 x 4 in norms.  bf16: attention 3 x 208,
    # dense 288, shared 2 x 96.
    assert m.non_expert_bytes() == 4 * (160 + 72 + 16 + 68) + 2 * (624 + 288 + 192) == 3472
    assert m.total_bytes == 3472 + 8 * 76.5 == 4084
    assert m.kv_bytes_per_token_per_layer == 2 * 2 * 2 * 1 == 8      # key and value, 2 heads x 2, fp8
    assert m.kv_bytes_per_token == 24
    assert m.activation_bytes_per_token == 16


def test_two_devices_share_heads_and_columns():
    m = ModelSpec.model_validate(SMALL)
    assert shapes(m.attention_gemms(2)) == [("qkv", 8, 8), ("out", 8, 4)]       # 2 + 1 + 1 heads x 2
    assert shapes(m.dense_gemms(2)) == [("dense_up", 12, 8), ("dense_down", 8, 6)]
    assert shapes(m.shared_gemms(2)) == [("shared_gate", 1, 8), ("shared_up", 4, 8), ("shared_down", 8, 2)]
    assert shapes(m.expert_gemms(2)) == [("expert_up", 6, 8), ("expert_down", 8, 3)]
    assert shapes([m.head_gemm(2), m.gate_gemm]) == [("head", 5, 8), ("gate", 4, 8)]
    assert m.attention_shape(2) == AttentionShape(heads=2, kv_heads=1, qk_dim=2, v_dim=2)
    # fp32: tables 80, gates 72, shared gates 16, norms 68.  bf16: attention 3 x (8 x 8 + 8 + 8 x 4), dense 144,
    # shared 2 x 96: whole on both devices, each runs them on its own tokens.
    assert m.non_expert_bytes(2) == 4 * (80 + 72 + 16 + 68) + 2 * (312 + 144 + 192) == 2240
    assert m.kv_bytes_per_token_on_device(2) == 12


def test_four_devices_copy_two_kv_heads():
    m = ModelSpec.model_validate(SMALL)
    assert shapes(m.attention_gemms(4)) == [("qkv", 6, 8), ("out", 8, 2)]       # 1 + 1 + 1 heads x 2
    assert m.attention_shape(4) == AttentionShape(1, 1, 2, 2)
    assert m.kv_bytes_per_token_on_device(4) == 12                              # not 6: each head is there twice
    assert m.head_gemm(4).n == 3                                                # 10 padded to 12


def test_latent_attention():
    m = ModelSpec.model_validate(LATENT)
    gemms = m.attention_gemms()
    assert shapes(gemms) == [("qkv_a", 12, 8),     # 6 for the query, 4 + 2 for key and value
                             ("q_b", 10, 6),       # 2 heads x (3 + 2)
                             ("kv_b", 16, 4),      # 2 heads x (3 + 5)
                             ("out", 8, 10)]       # 2 heads x 5
    assert gemms.parameters == 96 + 60 + 64 + 80 == 300
    assert m.attention_parameters == 300 + 6 + 4                                # norms of both compressed vectors
    assert m.attention_shape(1, "prefill") == AttentionShape(2, 2, 5, 5)
    assert m.attention_shape(1, "decode") == AttentionShape(2, 1, 6, 4)         # one latent of 4 (+ 2 positions)
    assert m.kv_bytes_per_token_per_layer == 4 + 2
    assert shapes(m.attention_gemms(2)) == [("qkv_a", 12, 8), ("q_b", 5, 6), ("kv_b", 8, 4), ("out", 8, 5)]
    assert m.kv_bytes_per_token_on_device(2) == 18                              # every device keeps the whole latent


def test_latent_attention_with_uncompressed_queries():
    attention = LATENT["attention"] | {"q_rank": None}
    m = ModelSpec.model_validate(LATENT | {"attention": attention})
    assert shapes(m.attention_gemms()) == [("q", 10, 8), ("kv_a", 6, 8), ("kv_b", 16, 4), ("out", 8, 10)]
    assert m.attention_parameters == 80 + 48 + 64 + 80 + 4


def test_absorbed_decode_costs_the_flop_of_kv_b():
    # Absorbed: per head, query 3 -> latent 4, and latent 4 -> value 5, as matrix-vector products.
    m = ModelSpec.model_validate(LATENT)
    kv_b = next(g for g in m.attention_gemms() if g.name == "kv_b")
    assert kv_b.flop_per_token == 2 * 2 * (3 * 4 + 4 * 5) == 128


def test_layers_with_different_numbers_of_experts():
    moe = SMALL["moe"] | {"experts": [4, 6], "layers": [2, 0]}
    m = ModelSpec.model_validate(SMALL | {"moe": moe})
    assert m.moe_layer_indices == (0, 2)
    assert m.experts_per_layer.tolist() == [4, 6] and m.n_experts == 6
    assert m.total_parameters == 2572 + 2 * 144 + 2 * 9              # two experts more, and two rows of a gate
    assert m.active_parameters == 1996 + 2 * 9


def test_experts_with_biases_and_without_gating():
    moe = {"layers": "1-2", "experts": 4, "top_k": 2, "ffn": 6, "bias": True}
    m = ModelSpec.model_validate(SMALL | {"moe": moe, "gated_ffn": False})
    assert shapes(m.expert_gemms()) == [("expert_up", 6, 8), ("expert_down", 8, 6)]
    assert m.expert_parameters == 96 + 14
    assert m.expert_bytes == 96 * 17 / 32 + 14 * 2                   # biases stay in bf16
    assert m.shared_gemms() == () and m.shared_expert_bytes == 0
    assert m.gate_gemm.parameters == 36


def test_sinks_and_norms_over_all_heads():
    attention = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 2, "bias": "all", "qk_norm": "all",
                 "sinks": True, "window": 16, "window_layers": "0,2"}
    m = ModelSpec.model_validate(SMALL | {"attention": attention})
    assert m.attention_parameters == 8 * 16 + 16 + 8 * 8 + 8 + (4 + 2) * 2 + 4
    assert m.attention_windows.tolist() == [16, 0, 16]


@pytest.mark.parametrize(("tp", "message"), [
    (3, "4 query heads cannot be shared by 3 devices; take a divisor of 4"),
    (8, "4 query heads cannot be shared by 8 devices"),
])
def test_heads_must_divide(tp, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec.model_validate(SMALL).attention_gemms(tp)
