"""Every error a user can meet. Each message says what was found, what was expected, and what to do."""


class STAdapterError(Exception):
    """Base of all errors raised by this package on purpose."""


class VideoError(STAdapterError):
    """A video that cannot be opened, or that did not give the frames asked for."""


class DataError(STAdapterError):
    """A data folder or list that cannot be trained or evaluated on."""


class BackboneError(STAdapterError):
    """A trunk that cannot be found, loaded or viewed as an image ViT."""


class ArtefactError(STAdapterError):
    """A run folder or checkpoint that is not ours, is damaged, or belongs to another trunk."""


class TrainingError(STAdapterError):
    """A training run that cannot start or must not go on."""


class DivergedError(TrainingError):
    """Weights or scores that are no finite numbers."""


class SettingsError(STAdapterError, ValueError):
    """A setting, or a combination of settings, that has no meaning."""
