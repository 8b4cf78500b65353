"""The two rows that need no training by gradient: the base model as it is, and a classical classifier.

Rules.
- Base model: MiniLM's mean-pooled, normalised token embeddings (the model card's recipe); a text
  belongs to the chapter whose title is nearest by cosine. Nothing is fitted or chosen.
- TF-IDF: character n-grams (2 to 5, within word boundaries) and a linear support vector machine,
  fitted on the pooled training texts: a centralised, non-private opponent. Its only choice, C, has
  as many grid points (`C_GRID`) as every trained arm has learning rates, chosen on validation.
- Both are computed live in every demo.

    >>> scores(test.labels, tfidf_svc(train, c=0.5)(test.texts)).accuracy
    0.738
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wardround_demo.chapters import LABELS, TITLES
from wardround_demo.dataset import Texts
from wardround_demo.metrics import accuracy, macro_f1

C_GRID = (0.3, 0.5, 1.0)
"""Grid of the support vector machine's C: as many points as every other arm has learning rates."""

Predict = Callable[[Sequence[str]], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Accuracy and macro-F1 of one arm, in [0, 1]."""

    accuracy: float
    macro_f1: float


def scores(truth: Sequence[str], predicted: Sequence[str]) -> Scored:
    """Return both measures."""
    return Scored(accuracy=accuracy(truth, predicted), macro_f1=macro_f1(truth, predicted))


def tfidf_svc(train: Texts, *, c: float) -> Predict:
    """Return a classifier fitted on `train` (deterministic)."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    features = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2, lowercase=True, dtype=np.float32
    )
    machine = LinearSVC(C=c, random_state=0).fit(features.fit_transform(train.texts), train.labels)
    return lambda texts: tuple(str(label) for label in machine.predict(features.transform(texts)))


def zero_shot(model_folder: Path, *, max_tokens: int = 64, batch: int = 256) -> Predict:
    """Return the base model as a classifier: nearest chapter title by cosine of mean-pooled embeddings."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
    model = AutoModel.from_pretrained(model_folder, local_files_only=True, trust_remote_code=False).eval()

    def embed(texts: Sequence[str]) -> torch.Tensor:  # (len(texts), hidden)
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
        hidden = model(**tokens).last_hidden_state  # (n, tokens, hidden)
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=1)

    def predict(texts: Sequence[str]) -> tuple[str, ...]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # alike lengths together: less padding
        found: dict[int, str] = {}
        with torch.inference_mode():
            titles = embed([TITLES[label] for label in LABELS])
            for start in range(0, len(order), batch):
                places = order[start : start + batch]
                nearest = (embed([texts[i] for i in places]) @ titles.T).argmax(1).tolist()
                found |= {place: LABELS[k] for place, k in zip(places, nearest, strict=True)}
        return tuple(found[i] for i in range(len(texts)))

    return predict
