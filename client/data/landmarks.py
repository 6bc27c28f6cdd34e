"""Intensity landmarks of an image: its percentiles, and the mapping that brings them to a standard scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared_models.statistics import PERCENTILES


def landmarks_of(channel: NDArray[np.float32]) -> NDArray[np.float64]:
    """The percentiles of one channel of an image, (11,), over the voxels above its smallest value.

    The smallest value is the air around a head, or the border that an image was padded with: how much of it there is
    says nothing of the tissue. Of a channel that is constant, all are that value.
    """
    above = channel[channel > channel.min()]
    return np.percentile(above if above.size else channel, PERCENTILES).astype(np.float64)


def to_standard(channel: NDArray[np.float32], standard: Sequence[float]) -> NDArray[np.float32]:
    """One channel of an image on the standard scale, (*spatial); a constant channel becomes 0.

    Nyul, Udupa and Zhang 2000, equation 1, with all percentiles as landmarks: linear between two landmarks of the
    image, each of which becomes its standard intensity, and on with the first and last slope beyond them.
    """
    own = landmarks_of(channel)
    # An image of few grey levels has landmarks that are equal: they share one place, the mean of theirs.
    places, which = np.unique(own, return_inverse=True)
    if len(places) < 2:
        return np.zeros(channel.shape, np.float32)
    targets = np.bincount(which, np.asarray(standard, np.float64)) / np.bincount(which)
    slopes = np.diff(targets) / np.diff(places)
    low, high = min(float(channel.min()), places[0]), max(float(channel.max()), places[-1])
    places = np.concatenate([[low], places, [high]])
    first, last = targets[0] - slopes[0] * (places[1] - low), targets[-1] + slopes[-1] * (high - places[-2])
    targets = np.concatenate([[first], targets, [last]])
    # Where an image has nothing beyond a landmark, its two points there are one.
    keep = np.concatenate([[True], np.diff(places) > 0])
    return np.interp(channel, places[keep], targets[keep]).astype(np.float32)
