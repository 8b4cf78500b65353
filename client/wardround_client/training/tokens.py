"""Tokenised records, and the frozen layers' output for each of them.

Rules.
- Each text is tokenised once, cut to the study's `max_tokens`.
- Activations below the adapted layers never change, so they are computed once and kept in RAM
  without padding. They are as sensitive as the text: never written to disk, never logged.
- A record that teaches nothing (no text, unknown label, no response left after the cut) is marked
  unusable and contributes zero.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wardround_client.data.text import TextData
from wardround_client.training.network import Network
from wardround_client.training.runtime import Runtime

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, repr=False)
class Tokens:
    """Token ids of all records, one after the other, and what is to be predicted."""

    ids: Ints  # [total tokens]
    offsets: Ints  # [records + 1]
    labels: Ints  # [records], class index; empty for instruction
    starts: Ints  # [records], first position whose *next* token belongs to the response; 0 for classification
    usable: NDArray[np.bool_]  # [records]

    @property
    def lengths(self) -> Ints:
        """Tokens of each record, [records]."""
        return np.diff(self.offsets)


@dataclass(frozen=True, kw_only=True, repr=False)
class Batch:
    """Records of one micro-batch, padded on the right."""

    ids: Tensor  # int64 [B, T]
    lengths: Tensor  # int64 [B]
    starts: Tensor  # int64 [B]
    labels: Tensor  # int64 [B]; empty for instruction

    def row(self, i: int) -> "Batch":
        """Return record `i` alone, without the padding."""
        rows, width = slice(i, i + 1), int(self.lengths[i])
        labels = self.labels[rows] if len(self.labels) else self.labels
        return Batch(ids=self.ids[rows, :width], lengths=self.lengths[rows], starts=self.starts[rows], labels=labels)


def tokenize(data: TextData, tokenizer: Any, max_tokens: int) -> Tokens:
    """Tokenise all records of `data`, each cut to `max_tokens`."""
    if data.responses:
        pairs = zip(data.texts, data.responses, strict=True)
        encoded = [encode_pair(tokenizer, prompt, response) for prompt, response in pairs]
        ids = [(prompt + response)[:max_tokens] for prompt, response in encoded]
        lengths = np.array([len(i) for i in ids], np.int64)
        wanted = np.array([max(len(prompt) - 1, 0) for prompt, _ in encoded], np.int64)
        starts = np.minimum(wanted, lengths - 1)
        filled = np.array([bool(t.strip() and r.strip()) for t, r in zip(data.texts, data.responses, strict=True)])
        usable = filled & (wanted + 1 < lengths)
    else:
        ids = tokenizer(list(data.texts), truncation=True, max_length=max_tokens)["input_ids"] if data.texts else []
        starts = np.zeros(len(ids), np.int64)
        usable = np.array([bool(text.strip()) for text in data.texts], bool) & (np.array(data.labels) >= 0)
        lengths = np.array([len(i) for i in ids], np.int64)
    return Tokens(
        ids=np.concatenate([np.asarray(i, np.int64) for i in ids]) if ids else np.zeros(0, np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=np.array(data.labels, np.int64),
        starts=starts,
        usable=usable,
    )


def encode_pair(tokenizer: Any, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """Return ids of the prompt (in the model's own chat format, where it has one) and of the response with its end."""
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    else:
        text = (tokenizer.bos_token or "") + prompt + "\n"
    head = tokenizer(text, add_special_tokens=False)["input_ids"]
    tail = tokenizer(response, add_special_tokens=False)["input_ids"]
    return list(head), [*tail, tokenizer.eos_token_id]


def make_batch(tokens: Tokens, records: Ints, device: torch.device) -> Batch:
    """Gather `records` (indices) into one right-padded batch."""
    lengths = tokens.lengths[records]
    inside = np.arange(lengths.max())[None] < lengths[:, None]
    ids = np.zeros(inside.shape, np.int64)
    ids[inside] = tokens.ids[_positions(tokens.offsets, records)]
    labels = tokens.labels[records] if len(tokens.labels) else tokens.labels
    ids_, lengths_, starts, labels_ = (
        torch.from_numpy(array).to(device) for array in (ids, lengths, tokens.starts[records], labels)
    )
    return Batch(ids=ids_, lengths=lengths_, starts=starts, labels=labels_)


def by_length(tokens: Tokens, records: Ints, budget: int) -> Iterator[Ints]:
    """Yield `records` sorted by length, in groups of at most `budget` padded tokens (but at least one record)."""
    order = records[np.argsort(tokens.lengths[records], kind="stable")]
    begin = 0
    for end, length in enumerate(tokens.lengths[order]):
        if end > begin and (end + 1 - begin) * length > budget:
            yield order[begin:end]
            begin = end
    if begin < len(order):
        yield order[begin:]


class Activations:
    """Hidden states that enter the first adapted layer, kept in RAM or recomputed. Its repr shows nothing."""

    def __init__(self, network: Network, tokens: Tokens, runtime: Runtime) -> None:
        self._network, self._tokens = network, tokens
        self._budget = 4 * runtime.micro_batch_tokens  # no gradients: room for larger batches
        self._kept: Tensor | None = None  # float32 [total tokens, H]
        self._fits = 4 * len(tokens.ids) * network.hidden_size <= runtime.cache_mib << 20

    def fill(self, progress: Callable[[int, int], None]) -> None:
        """Compute all records once, if they fit; `progress` gets (tokens done, all tokens)."""
        if self._kept is not None or not self._fits:
            return
        total, done = len(self._tokens.ids), 0
        kept = torch.empty(total, self._network.hidden_size)
        for records in by_length(self._tokens, np.arange(len(self._tokens.lengths)), self._budget):
            batch = make_batch(self._tokens, records, self._network.device)
            inside = torch.arange(batch.ids.shape[1], device=batch.ids.device)[None] < batch.lengths[:, None]
            hidden = self._network.lower(batch.ids, batch.lengths)[inside]
            kept[torch.from_numpy(_positions(self._tokens.offsets, records))] = hidden.cpu()
            done += len(hidden)
            progress(done, total)
        self._kept = kept

    def gather(self, records: Ints, batch: Batch) -> Tensor:
        """Return the hidden states [B, T, H] of `records`; padding is zero."""
        if self._kept is None:
            return self._network.lower(batch.ids, batch.lengths)
        width = batch.ids.shape[1]
        inside = torch.arange(width)[None] < torch.from_numpy(self._tokens.lengths[records])[:, None]
        hidden = torch.zeros(len(records), width, self._network.hidden_size)
        hidden[inside] = self._kept[torch.from_numpy(_positions(self._tokens.offsets, records))]
        return hidden.to(self._network.device)


def _positions(offsets: Ints, records: Ints) -> Ints:
    """Return the flat token positions of `records`, one record after the other."""
    lengths = offsets[records + 1] - offsets[records]
    ends = np.cumsum(lengths)
    positions: Ints = np.arange(ends[-1]) + np.repeat(offsets[records] - ends + lengths, lengths)
    return positions
