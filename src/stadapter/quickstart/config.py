"""What a quickstart is made of."""

import math
from dataclasses import dataclass

from stadapter.field_types import check_limits, check_types


@dataclass(frozen=True)
class QuickstartConfig:
    """Make clips, train a linear probe and ST-Adapter on them with the same budget, test both, and look at the
    result: minutes on two cores, nothing downloaded."""

    out: str = "quickstart"
    """Folder to make: clips, two run folders, result.json; an unfinished one is gone on with."""
    seed: int = 0
    """Of the drawings and of training."""
    train_clips: int = 64
    """Clips of each of the 8 classes to train on."""
    test_clips: int = 16
    """Clips of each class to test on, drawn from another seed."""
    epochs: int = 7
    """Passes over the training clips, for both."""

    def __post_init__(self) -> None:
        check_types(self)
        at_least_1 = dict.fromkeys(("train_clips", "test_clips", "epochs"), (1, math.inf))
        check_limits(self, {"seed": (0, math.inf), **at_least_1})
