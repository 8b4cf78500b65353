"""`--quick`: fewer rounds, steps and records, to see the path work within a minute or two.

Rules. The mechanism's form, ε, δ and clip norm stay the full demo's; only sizes shrink, and the noise is calibrated to
them. No number of a quick run says what the model reaches, and the screen says so. No recorded row follows from here.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wardround_demo.settings import Plan

TRAIN, HELD_OUT = 2_400, 600
"""Texts: enough to see the path work, too few to judge a model by."""


def shortened(plan: "Plan") -> "Plan":
    """Return the quick version of `plan`."""
    title = f"{plan.title} · quick"
    if plan.model == "smollm2":
        return replace(plan, title=title, rounds=2, steps_per_round=2, train=300, held_out=45)
    return replace(
        plan,
        title=title,
        rounds=3,
        steps_per_round=4,
        sample_rate=0.25,
        nominal_size=TRAIN // 3,
        train=TRAIN,
        held_out=HELD_OUT,
    )
