"""The settings of a quickstart."""

import math
from dataclasses import dataclass

from stadapter.field_types import check_at_least_1, check_limits, check_types


@dataclass(frozen=True)
class QuickstartConfig:
    """Make clips, train a linear probe and ST-Adapter on them with the same budget, test both, and look at the
    result: takes minutes on two cores, downloads nothing."""

    out: str = "quickstart"
    """Folder to create, for clips, two run folders and result.json; an unfinished one is resumed."""
    seed: int = 0
    """Seed of the drawings and of training."""
    train_clips_per_class: int = 64
    """Training clips per class, for each of the 8 classes."""
    test_clips_per_class: int = 16
    """Test clips per class, drawn from another seed."""
    epochs: int = 7
    """Passes over the training clips, the same for both."""

    def __post_init__(self) -> None:
        check_types(self)
        check_limits(self, {"seed": (0, math.inf)})
        check_at_least_1(self, "train_clips_per_class", "test_clips_per_class", "epochs")
