"""Results that are no numbers: nan or infinity ends the work, so that nothing made from it is published."""

from __future__ import annotations

import math
from collections.abc import Mapping

from subliminal.store import StoreError


class NonFiniteError(StoreError):
    """A loss, gradient, weight or probability is nan or infinite; the text says which, where, and what to do."""


MODEL_REMEDY = (
    "The model's weights or its arithmetic give no numbers: look at how its training went, or set model.dtype=float32"
)


def require_finite(values: Mapping[str, float], where: str, remedy: str) -> None:
    """Raise `NonFiniteError` that shows every value by name and ends with `remedy`, where any of them is not finite."""
    if not all(map(math.isfinite, values.values())):
        shown = ", ".join(f"{name} is {value:g}" for name, value in values.items())
        raise NonFiniteError(f"{where}: {shown}. {remedy}")
