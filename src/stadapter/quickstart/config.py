"""What a quickstart is made of."""

from dataclasses import dataclass

from stadapter.errors import SettingsError


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
        for name, lowest in {"seed": 0, "train_clips": 1, "test_clips": 1, "epochs": 1}.items():
            if getattr(self, name) < lowest:
                raise SettingsError(f"{name} {getattr(self, name)}: expected at least {lowest}")
