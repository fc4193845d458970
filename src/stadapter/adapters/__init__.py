"""Networks that strategies put into a trunk; one module each, plus the names that settings use for them."""

from typing import Literal

Activation = Literal["gelu", "silu", "tanh"]
"""f between an adapter's projections."""
