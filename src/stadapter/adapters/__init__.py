"""Networks that strategies put into a trunk; one module each, and the names that settings know them by."""

from typing import Literal

Activation = Literal["gelu", "silu", "tanh"]
"""f between an adapter's projections."""
