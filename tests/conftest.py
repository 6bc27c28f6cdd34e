"""What every test shares: one thread, a quiet Flower, and the real data where there is some."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# Set before anything imports torch, flwr or ray, and inherited by the processes that tests start.
os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    RAY_USAGE_STATS_ENABLED="0",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    # A terminal of one known width, whatever the one is that the tests run in.
    COLUMNS="120",
)

# No test asserts a time, and a machine may be busy.
hypothesis.settings.register_profile("consilium", deadline=None)
hypothesis.settings.load_profile("consilium")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: CONSILIUM_SHARED_DATA, or ../shared/data beside the checkout.

    Without it a test is skipped; with CONSILIUM_REQUIRE_SHARED_DATA set, it fails instead.
    """
    folder = Path(os.environ.get("CONSILIUM_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        reason = f"no real data at {folder}; set CONSILIUM_SHARED_DATA to the folder that holds the data sets"
        if os.environ.get("CONSILIUM_REQUIRE_SHARED_DATA"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
