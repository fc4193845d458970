"""Every error a user can meet. Each message says what was found, what was expected, and what to do."""


class STAdapterError(Exception):
    """Base of all errors this package raises on purpose."""


class VideoError(STAdapterError):
    """A video that cannot be opened, or that does not give the requested frames."""


class DataError(STAdapterError):
    """A data folder or list that cannot be trained or evaluated on."""


class BackboneError(STAdapterError):
    """A trunk that cannot be found, loaded, or used as an image ViT."""


class ArtefactError(STAdapterError):
    """A run folder or checkpoint that this package did not write, that is damaged, or belongs to another trunk."""


class TrainingError(STAdapterError):
    """A training run that cannot start or must not continue."""


class DivergedError(TrainingError):
    """Weights or scores that are not finite numbers."""


class SettingsError(STAdapterError, ValueError):
    """An invalid setting or combination of settings."""
