"""Fixtures shared by all tests: an offline hub, and the real data where it is present."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real clips, trunks and golden values beside the repository; absent on most machines."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: this test needs the real clips, trunks and golden values")
    return folder
