"""SmolLM2: how well the model predicts the responses, before and after.

Rules. Negative log-likelihood in nats per response token (prompt tokens do not count), averaged over
texts, on the public test set; computed with stock transformers and stock PEFT.

    >>> base_nll(data, plan, folder), released_nll(data, plan, folder, release)
    (2.71, 1.02)
"""

from pathlib import Path
from typing import Any

from wardround_demo.dataset import Dataset, Texts
from wardround_demo.settings import Plan


def base_nll(data: Dataset, plan: Plan, model_folder: Path) -> float:
    """Return the base model's response NLL on the test set."""
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(model_folder, local_files_only=True)
    return response_nll(model.eval(), model_folder, data.test, max_tokens=plan.max_tokens)


def released_nll(data: Dataset, plan: Plan, model_folder: Path, release: Path) -> float:
    """Return the response NLL of base model + released adapter on the test set."""
    from wardround_demo.released import load

    model = load(model_folder, release, labels=None)
    return response_nll(model, model_folder, data.test, max_tokens=plan.max_tokens)


def response_nll(model: Any, model_folder: Path, texts: Texts, *, max_tokens: int) -> float:
    """Return the mean over texts of the mean NLL of their response tokens; texts cut before it are left out."""
    import torch

    from wardround_client.training.network import load_tokenizer
    from wardround_client.training.tokens import encode_pair

    tokenizer = load_tokenizer(model_folder)
    losses = []
    with torch.inference_mode():
        for prompt, response in zip(texts.texts, texts.labels, strict=True):
            head, tail = encode_pair(tokenizer, prompt, response)
            ids = torch.tensor([(head + tail)[:max_tokens]])
            if ids.shape[1] <= len(head):
                continue
            logits = model(input_ids=ids).logits[0, len(head) - 1 : -1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, len(head) :]).item())
    return sum(losses) / len(losses)
