"""Networks that strategies put into a trunk; one module each, plus the names that settings use for them."""

from typing import Literal

from stadapter.errors import SettingsError

Activation = Literal["gelu", "silu", "tanh"]
"""f between an adapter's projections."""


def check_places(*, before_attention: bool, before_mlp: bool) -> None:
    """Refuse settings that put an adapter nowhere.

    Raises:
        SettingsError: neither before_attention (A1) nor before_mlp (A2).
    """
    if not (before_attention or before_mlp):
        raise SettingsError("an adapter with neither before_attention nor before_mlp trains nothing; set one of them")
