"""The released adapter, loaded as anybody would load it: `transformers` and stock `peft`, no wardround code.

Rules. What this module computes is the federated row of the table, so the printed score is the
score of the files that were released, not of tensors inside a server.

    >>> predict = classifier(minilm_folder, Path("demo-out/release"))
    >>> predict(["Fracture of shaft of humerus"])
    ('19',)
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wardround_demo.baselines import Predict
from wardround_demo.chapters import LABELS


def classifier(model_folder: Path, release: Path, *, max_tokens: int = 64, batch: int = 64) -> Predict:
    """Return base model + released adapter as a classifier."""
    import torch
    from transformers import AutoTokenizer

    model = load(model_folder, release, labels=len(LABELS))
    tokenizer = AutoTokenizer.from_pretrained(model_folder, local_files_only=True)

    def predict(texts: Sequence[str]) -> tuple[str, ...]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # alike lengths together: less padding
        found: dict[int, str] = {}
        with torch.inference_mode():
            for start in range(0, len(order), batch):
                places = order[start : start + batch]
                tokens = tokenizer(
                    [texts[i] for i in places],
                    padding=True,
                    truncation=True,
                    max_length=max_tokens,
                    return_tensors="pt",
                )
                mask = tokens["attention_mask"][..., None]
                logits = (model(**tokens).logits * mask).sum(1) / mask.sum(1)  # a text is the mean of its tokens
                chosen = logits.argmax(1).tolist()
                found |= {place: LABELS[k] for place, k in zip(places, chosen, strict=True)}
        return tuple(found[i] for i in range(len(texts)))

    return predict


def load(model_folder: Path, release: Path, *, labels: int | None) -> Any:
    """Return the PEFT model in evaluation mode; `labels` None means a language model."""
    import peft
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the base model has no classification head: the adapter brings it
        transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        if labels is None:
            base = transformers.AutoModelForCausalLM.from_pretrained(model_folder, local_files_only=True)
        else:
            base = transformers.AutoModelForTokenClassification.from_pretrained(
                model_folder, num_labels=labels, local_files_only=True
            )
        return peft.PeftModel.from_pretrained(base, release).eval()
