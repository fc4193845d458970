"""The classifier that a verb's flags ask for."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from stadapter.predict import Classifier

Precision = Literal["fp32", "bf16"]


def load_classifier(run_folder: str, *, backbone: str | None, precision: Precision, device: str) -> "Classifier":
    """The classifier of a run folder or Hub id, on a device ("auto" chooses one)."""
    import torch

    from stadapter.predict import Classifier

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Classifier.load(run_folder, device=device, dtype=dtype, backbone=backbone)
