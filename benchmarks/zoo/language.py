"""Language models, from transformers' own configurations and code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from zoo.base import Input, Model

WORDS, HIDDEN, INNER, HEADS, LAYERS, POSITIONS = 61, 48, 80, 4, 2, 40
QUERIES, SHARED, WIDTH = 6, 3, 10
"""Query heads and key-value heads where they differ, and the width of such a head."""

BOTH = ("eager", "sdpa")


class Tokens(nn.Module):
    """Tokens and their padding in, one tensor out."""

    def __init__(self, net: nn.Module, output: str) -> None:
        super().__init__()
        self.net, self.output = net, output

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return getattr(self.net(input_ids=input_ids, attention_mask=attention_mask), self.output)


class Placed(Tokens):
    """Tokens, their padding and their positions in, as serving stacks export decoders."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        found = self.net(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
        return getattr(found, self.output)


def _text(
    build: Callable[[], tuple[type, object]],
    output: str = "last_hidden_state",
    *,
    placed: bool = False,
    attention: tuple[str, ...] = BOTH,
) -> Model:
    def make(attention: str) -> nn.Module:
        net, config = build()
        config.use_cache = False
        return (Placed if placed else Tokens)(net._from_config(config, attn_implementation=attention), output)

    inputs = {
        "input_ids": Input(("batch", "tokens"), WORDS),
        "attention_mask": Input(("batch", "tokens"), padding=True),
    }
    if placed:
        inputs["position_ids"] = Input(("batch", "tokens"), POSITIONS)
    return Model(make, inputs, attention)


def _bert() -> tuple[type, object]:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification, BertConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=POSITIONS,
    )  # fmt: skip


def _distilbert() -> tuple[type, object]:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    return DistilBertForSequenceClassification, DistilBertConfig(
        vocab_size=WORDS, dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, hidden_dim=INNER,
        max_position_embeddings=POSITIONS,
    )  # fmt: skip


def _albert() -> tuple[type, object]:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    return AlbertForSequenceClassification, AlbertConfig(
        vocab_size=WORDS, embedding_size=28, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=POSITIONS,
    )  # fmt: skip


def _gpt2() -> tuple[type, object]:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel, GPT2Config(
        vocab_size=WORDS, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=INNER, n_positions=POSITIONS,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def _opt() -> tuple[type, object]:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM, OPTConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, word_embed_proj_dim=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, ffn_dim=INNER, max_position_embeddings=POSITIONS,
    )  # fmt: skip


def _gpt_neox() -> tuple[type, object]:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM, GPTNeoXConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=POSITIONS,
    )  # fmt: skip


def _grouped() -> dict[str, int]:
    """The sizes of decoders whose query heads share key-value heads."""
    return {
        "vocab_size": WORDS, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": QUERIES,
        "num_key_value_heads": SHARED, "head_dim": WIDTH, "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
    }  # fmt: skip


def _llama() -> tuple[type, object]:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM, LlamaConfig(**_grouped())


def _qwen3() -> tuple[type, object]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM, Qwen3Config(**_grouped())


def _gemma() -> tuple[type, object]:
    from transformers import GemmaConfig, GemmaForCausalLM

    return GemmaForCausalLM, GemmaConfig(**_grouped())


def _gemma3() -> tuple[type, object]:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM, Gemma3TextConfig(
        **_grouped(), sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    )


def _mixtral() -> tuple[type, object]:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**_grouped(), num_local_experts=3, num_experts_per_tok=2)
    config._experts_implementation = "batched_mm"  # the others are loops over data
    return MixtralForCausalLM, config


def _phi() -> tuple[type, object]:
    from transformers import PhiConfig, PhiForCausalLM

    return PhiForCausalLM, PhiConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=POSITIONS,
    )  # fmt: skip


def _falcon() -> tuple[type, object]:
    from transformers import FalconConfig, FalconForCausalLM

    return FalconForCausalLM, FalconConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        ffn_hidden_size=INNER, max_position_embeddings=POSITIONS, multi_query=True,
    )  # fmt: skip


def _falcon_grouped() -> tuple[type, object]:
    from transformers import FalconConfig, FalconForCausalLM

    return FalconForCausalLM, FalconConfig(  # one weight: the queries of each head, its keys, its values
        vocab_size=WORDS, hidden_size=QUERIES * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=QUERIES,
        num_kv_heads=SHARED, ffn_hidden_size=INNER, max_position_embeddings=POSITIONS, new_decoder_architecture=True,
    )  # fmt: skip


def _phi3() -> tuple[type, object]:
    from transformers import Phi3Config, Phi3ForCausalLM

    return Phi3ForCausalLM, Phi3Config(  # one weight: all queries, all keys, all values
        vocab_size=WORDS, hidden_size=QUERIES * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=QUERIES,
        num_key_value_heads=2, intermediate_size=INNER, max_position_embeddings=POSITIONS, pad_token_id=0,
    )  # fmt: skip


def _olmo2() -> tuple[type, object]:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    return Olmo2ForCausalLM, Olmo2Config(  # queries and keys of all heads are normalized together, so heads stay
        vocab_size=WORDS, hidden_size=QUERIES * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=QUERIES,
        num_key_value_heads=SHARED, intermediate_size=INNER, max_position_embeddings=POSITIONS,
    )  # fmt: skip


def _bloom() -> tuple[type, object]:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM, BloomConfig(vocab_size=WORDS, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS)


def _modernbert() -> tuple[type, object]:
    from transformers import ModernBertConfig, ModernBertModel

    return ModernBertModel, ModernBertConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=POSITIONS, global_attn_every_n_layers=2, local_attention=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip


def _deberta() -> tuple[type, object]:
    from transformers import DebertaV2Config, DebertaV2Model

    return DebertaV2Model, DebertaV2Config(
        vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=POSITIONS, relative_attention=True, position_buckets=4,
        pos_att_type=["p2c", "c2p"],
    )  # fmt: skip


def _t5() -> tuple[type, object]:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel, T5Config(
        vocab_size=WORDS, d_model=HIDDEN, d_kv=10, d_ff=INNER, num_layers=LAYERS, num_heads=HEADS,
    )  # fmt: skip


def _clip_text() -> tuple[type, object]:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel, CLIPTextConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=POSITIONS,
    )  # fmt: skip


def models() -> dict[str, Model]:
    """Classifiers, decoders and bare encoders."""
    return {
        "bert": _text(_bert, "logits"),
        "distilbert": _text(_distilbert, "logits"),
        "albert": _text(_albert, "logits"),
        "gpt2": _text(_gpt2, "logits"),
        "opt": _text(_opt, "logits"),
        "gpt_neox": _text(_gpt_neox, "logits"),
        "llama": _text(_llama, "logits"),
        "llama_placed": _text(_llama, "logits", placed=True),
        "qwen3": _text(_qwen3, "logits"),
        "gemma": _text(_gemma, "logits"),
        "gemma3": _text(_gemma3, "logits"),
        "mixtral": _text(_mixtral, "logits"),
        "phi": _text(_phi, "logits"),
        "phi3": _text(_phi3, "logits", placed=True),
        "falcon": _text(_falcon, "logits"),
        "falcon_grouped": _text(_falcon_grouped, "logits"),
        "olmo2": _text(_olmo2, "logits"),
        "bloom": _text(_bloom, "logits"),
        "modernbert": _text(_modernbert),
        "deberta": _text(_deberta, attention=("eager",)),
        "t5_encoder": _text(_t5),
        "clip_text": _text(_clip_text),
    }
