"""Landmarks: an image keeps its contrast and loses the scale that its scanner wrote it in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.landmarks import landmarks_of, to_standard

STANDARD = [-2.0, -1.4, -0.9, -0.6, -0.3, 0.0, 0.4, 0.7, 1.0, 1.3, 1.7]


@pytest.fixture
def image():
    return np.random.default_rng(0).gamma(3.0, 20.0, size=(12, 14, 9)).astype(np.float32)


def test_the_percentiles_of_an_image_become_the_standard_ones(image):
    mapped = to_standard(image, STANDARD)
    assert mapped.dtype == np.float32 and mapped.shape == image.shape
    above = mapped[image > image.min()]
    np.testing.assert_allclose(np.percentile(above, (1, 10, 50, 90, 99)), [-2.0, -1.4, 0.0, 1.3, 1.7], atol=2e-3)


@given(st.floats(0.01, 1e5), st.floats(-1e4, 1e4))
def test_scale_and_offset_of_a_scanner_do_not_show(scale, offset):
    image = np.random.default_rng(1).gamma(3.0, 20.0, size=(8, 8, 8))
    other = image * scale + offset
    np.testing.assert_allclose(
        to_standard(other.astype(np.float32), STANDARD), to_standard(image.astype(np.float32), STANDARD), atol=0.02
    )


def test_air_around_a_head_does_not_move_the_landmarks(image):
    padded = np.pad(image, 10)  # most of it is zero now
    np.testing.assert_allclose(landmarks_of(padded), landmarks_of(image), atol=0.3)


def test_the_order_of_intensities_stays_also_beyond_the_last_landmark(image):
    ranks = np.argsort(image, axis=None)
    mapped = to_standard(image, STANDARD).ravel()[ranks]
    assert (np.diff(mapped) >= 0).all() and mapped[0] < STANDARD[0] and mapped[-1] > STANDARD[-1]


def test_an_image_of_few_grey_levels_and_a_constant_one_stay_finite():
    levels = np.repeat(np.array([0, 1, 2, 3], np.float32), 50)
    mapped = to_standard(levels, STANDARD)
    assert np.isfinite(mapped).all() and (np.diff(np.unique(mapped)) > 0).all() and len(np.unique(mapped)) == 4
    assert not to_standard(np.full((3, 3), 7.0, np.float32), STANDARD).any()


def test_a_scanners_contrast_curve_does_not_show_at_the_landmarks(image):
    curved = (image / image.max()) ** 0.5 * 1000
    shares = (1, 10, 30, 50, 70, 90, 99)
    straight, bent = (
        np.percentile(to_standard(values.astype(np.float32), STANDARD), shares) for values in (image, curved)
    )
    np.testing.assert_allclose(bent, straight, atol=0.01)
    scored = [np.percentile((values - values.mean()) / values.std(), shares) for values in (image, curved)]
    assert np.abs(scored[0] - scored[1]).max() > 0.3  # which a z-score leaves as it is
