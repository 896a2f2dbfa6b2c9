"""Training: TRL's SFT trainer with PEFT and Accelerate underneath, and the bias student."""

from subliminal.store import StoreError


class TrainingError(StoreError):
    """Rows or settings that can not be trained on; the text says what to change."""
