"""A federation for the tests of the front: a real SuperLink behind it, started once for each file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from tests.server.superlink import Federation, running


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with running(tmp_path_factory.mktemp("federation") / "home") as made:
        yield made


@pytest.fixture(scope="module")
def north(federation: Federation) -> EllipticCurvePrivateKey:
    """The key of an active site that the SuperLink does not know, so that every answer of it is its own 401."""
    return federation.admit("north")
