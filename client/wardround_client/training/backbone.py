"""The two model families, cut where the frozen layers end.

Rules.
- `lower` runs everything below the first adapted layer: it is frozen, so its output can be kept.
  `upper` runs the rest; in Llama only the positions that predict the response reach the vocabulary.
- Both give the logits of the stock Hugging Face model (tests/client/training/test_backbone.py). A text
  is classified by the mean of its tokens' logits in `BertForTokenClassification`: sentence encoders
  such as MiniLM are trained with mean pooling, and their checkpoints' pooler never was.
- One record's result never depends on another record of the batch: padding is masked, losses stay
  per record.
Not done here: adapters, which are inside the modules already (`network`), and gradients.

Sources: BertModel and LlamaModel of transformers 5.23.0.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from wardround_common.errors import ConfigError


class Backbone(Protocol):
    """One family's forward pass; `model` is the task model with adapters in place."""

    def lower(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Map ids [B, T] to the hidden states [B, T, H] that enter the first adapted layer."""

    def upper(self, hidden: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
        """Map hidden states [B, T, H] to logits: [B, labels], or [B, T, vocabulary] from `starts` on."""


class BertBackbone:
    """BERT with the linear head of `BertForTokenClassification`, averaged over a text's tokens.

    Raises:
        ConfigError: a variant of BERT that this forward pass does not compute.
    """

    def __init__(self, model: Any, first: int, *, checkpointing: bool = False) -> None:
        if getattr(model.config, "position_embedding_type", "absolute") != "absolute":
            raise _unsupported("relative position embeddings")
        if model.config.is_decoder or model.config.add_cross_attention:
            raise _unsupported("a BERT decoder")
        self._model, self._layers, self._first = model, model.bert.encoder.layer, first
        self._heads = model.config.num_attention_heads
        self._checkpointing = checkpointing

    def lower(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """See `Backbone.lower`."""
        mask = _padding_mask(lengths, ids.shape[1])
        hidden: Tensor = self._model.bert.embeddings(input_ids=ids)
        for layer in self._layers[: self._first]:
            hidden = self._layer(layer, hidden, mask)
        return hidden

    def upper(self, hidden: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
        """Return [B, labels]; `starts` is not used."""
        mask = _padding_mask(lengths, hidden.shape[1])
        for layer in self._layers[self._first :]:
            hidden = _maybe_again(self._checkpointing, self._layer, layer, hidden, mask)
        real = mask[:, 0, 0, :, None]  # the mean of the logits is the logits of the mean: the head is linear
        logits: Tensor = self._model.classifier(torch.where(real, hidden, 0.0).sum(1) / real.sum(1))
        return logits

    def _layer(self, layer: Any, hidden: Tensor, mask: Tensor) -> Tensor:
        attention = layer.attention.self
        query, key, value = (
            module(hidden).unflatten(2, (self._heads, -1)).transpose(1, 2)
            for module in (attention.query, attention.key, attention.value)
        )
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output = layer.attention.output
        attended = output.LayerNorm(output.dense(context.transpose(1, 2).flatten(2)) + hidden)
        inner = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(attended))
        result: Tensor = layer.output.LayerNorm(layer.output.dense(inner) + attended)
        return result


class LlamaBackbone:
    """Llama with its language-model head; right padding needs no mask beside the causal one."""

    def __init__(self, model: Any, first: int, *, checkpointing: bool = False) -> None:
        self._model, self._layers, self._first = model, model.model.layers, first
        self._checkpointing = checkpointing
        config = model.config
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads

    def lower(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """See `Backbone.lower`."""
        hidden: Tensor = self._model.model.embed_tokens(ids)
        return self._run(self._layers[: self._first], hidden)

    def upper(self, hidden: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
        """Return the logits [B, T', vocabulary] of the last T' positions, from the batch's first start on."""
        hidden = self._run(self._layers[self._first :], hidden)
        logits: Tensor = self._model.lm_head(self._model.model.norm(hidden[:, int(starts.min()) :]))
        return logits

    def _run(self, layers: Any, hidden: Tensor) -> Tensor:
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        cos, sin = self._model.model.rotary_emb(hidden, position_ids=positions)
        for layer in layers:
            hidden = _maybe_again(self._checkpointing, self._layer, layer, hidden, cos, sin)
        return hidden

    def _layer(self, layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self._attention(layer.self_attn, layer.input_layernorm(hidden), cos, sin)
        result: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return result

    def _attention(self, attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query = attention.q_proj(x).unflatten(2, (self._heads, -1)).transpose(1, 2)
        key = attention.k_proj(x).unflatten(2, (self._groups, -1)).transpose(1, 2)
        value = attention.v_proj(x).unflatten(2, (self._groups, -1)).transpose(1, 2)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        context = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        result: Tensor = attention.o_proj(context.transpose(1, 2).flatten(2))
        return result


def make_backbone(model: nn.Module, first: int, *, checkpointing: bool = False) -> Backbone:
    """Return the forward pass for `model`, whose lowest adapted layer is `first`.

    Args:
        model: the task model with adapters in place.
        first: index of the lowest adapted layer.
        checkpointing: keep only what enters each layer and compute the rest again in the backward pass.

    Raises:
        ConfigError: a variant of the family that is not supported.
    """
    kind: str = model.config.model_type  # type: ignore[union-attr, assignment]
    made = BertBackbone if kind == "bert" else LlamaBackbone
    return made(model, first, checkpointing=checkpointing)


def _maybe_again(checkpointing: bool, layer: Callable[..., Tensor], *args: Any) -> Tensor:
    if not (checkpointing and torch.is_grad_enabled()):
        return layer(*args)
    result: Tensor = checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False)  # nothing is random
    return result


def _padding_mask(lengths: Tensor, width: int) -> Tensor:  # [B] -> bool [B, 1, 1, T]
    return (torch.arange(width, device=lengths.device)[None] < lengths[:, None])[:, None, None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [B, heads, T, D], [1, T, D]
    left, right = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-right, left), dim=-1) * sin[:, None]


def _unsupported(what: str) -> ConfigError:
    return ConfigError(
        "model-variant-unsupported",
        f"{what} cannot be trained",
        next_step="choose an ordinary BERT encoder or Llama decoder",
    )
