"""The classifier that the flags of a verb ask for."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from stadapter.predict import Classifier

Precision = Literal["fp32", "bf16"]


def load_classifier(run_folder: str, *, backbone: str | None, precision: Precision, device: str) -> "Classifier":
    """The classifier of a run folder or Hub id, on a device ("auto" chooses one)."""
    from stadapter.predict import Classifier

    return Classifier.load(run_folder, device=device, dtype=autocast_dtype(precision), backbone=backbone)


def autocast_dtype(precision: Precision) -> "torch.dtype | None":
    """What to compute in beside fp32; None is fp32 alone."""
    import torch

    return torch.bfloat16 if precision == "bf16" else None
