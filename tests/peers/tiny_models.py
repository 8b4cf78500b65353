"""Small BERT and Llama folders with random weights, made once per test session, and studies for them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wardround_client.data.text import TextData
from wardround_common.study import Adapter, Model, Optimiser, Privacy, Task

WORDS = [f"w{i}" for i in range(50)]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = ("a", "b", "c")
DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What of a study training looks at."""

    task: Task
    model: Model
    adapter: Adapter
    privacy: Privacy
    optimiser: Optimiser


def make_bert(folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(SPECIALS + WORDS)}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def make_llama(folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def classification(**privacy: object) -> Spec:
    targets = ("query", "key", "value", "dense")
    task = Task(kind="classification", dataset="d", text_column="text", label_column="label", labels=LABELS)
    return _spec(task, targets, privacy)


def instruction(**privacy: object) -> Spec:
    task = Task(kind="instruction", dataset="d", text_column="text", label_column="label")
    return _spec(task, ("q_proj", "v_proj"), privacy)


def _spec(task: Task, targets: tuple[str, ...], privacy: dict[str, object]) -> Spec:
    mechanism = {
        "unit": "record",
        "adjacency": "add-or-remove-one",
        "epsilon": 8.0,
        "delta": 1e-5,
        "sample_rate": 0.5,
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "steps_per_round": 3,
        "rounds": 4,
        "divisor": 10.0,
    } | privacy
    adapter = Adapter(
        kind="ffa-lora",
        rank=4,
        alpha=8.0,
        target_modules=targets,
        layers=(1, 2),
        seed=3,
        initial=DIGEST,
        parameters=1,
    )
    return Spec(
        task=task,
        model=Model(source="tiny", content=DIGEST, max_tokens=24),
        adapter=adapter,
        privacy=Privacy.model_validate(mechanism),
        optimiser=Optimiser(adapter_rate=1e-2, head_rate=2e-2),
    )


def texts(count: int, *, seed: int = 0, units: list[int] | None = None) -> TextData:
    rng = np.random.default_rng(seed)
    return TextData(
        texts=tuple(" ".join(rng.choice(WORDS, size=rng.integers(2, 15))) for _ in range(count)),
        labels=tuple(int(label) for label in rng.integers(0, len(LABELS), count)),
        responses=(),
        units=np.arange(count) if units is None else np.array(units, np.int64),
        unit="record" if units is None else "patient",
    )


def dialogues(count: int, *, seed: int = 0) -> TextData:
    rng = np.random.default_rng(seed)

    def words() -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(2, 8)))

    return TextData(
        texts=tuple(words() for _ in range(count)),
        labels=(),
        responses=tuple(words() for _ in range(count)),
        units=np.arange(count),
        unit="record",
    )
