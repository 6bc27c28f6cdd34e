"""Federated averaging: McMahan et al. 2017, "Communication-efficient learning of deep networks", algorithm 1."""

from __future__ import annotations

from torch import nn

from shared_models.job import Share
from shared_models.weights import Weights, travelling


class FedAvg:
    """The site sends its weights, to be summed with the number of its cases; the server divides by all cases."""

    def contribution(self, network: nn.Module, share: Share, cases: int) -> tuple[Weights, int]:
        """Site half: named tensors, and the weight that they are summed with.

        Weights are sent rather than differences: a weight times a count is exact in float64, so that N identical
        sites average to the identical model, bit for bit.
        """
        return travelling(network, share), cases

    def combine(self, mean: Weights) -> Weights:
        """Server half: from the weighted mean over the sites to the model that the server optimiser steps towards."""
        return mean
