"""The job's `simulation.participation` and `simulation.faulty` sections: hospitals that come, go, wait, or do harm."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared_models.section import Section


class Participation(Section):
    """When a virtual hospital takes part in training, and how fast it is. It is judged in every round all the same."""

    joins: int = Field(1, ge=1, description="The first round that it is there in.")
    leaves: int | None = Field(None, ge=2, description="The first round that it is away in again; null stays.")
    answers: float = Field(1.0, gt=0, le=1, description="How probably it is there in a round, drawn for each attempt.")
    slowdown: float = Field(1.0, gt=0, description="Times as slow as the machine of the simulation; 0.5 is faster.")

    @model_validator(mode="after")
    def _joins_before_it_leaves(self) -> Participation:
        if self.leaves is not None and self.leaves <= self.joins:
            raise ValueError(f"leaves in round {self.leaves}, but joins in round {self.joins}: it would never be there")
        return self


class FaultSection(Section):
    """What every fault takes."""

    from_round: int = Field(1, ge=1, description="The first round with the fault; before, the hospital is honest.")


class SignFlipFault(FaultSection):
    """Sends w - s (w_k - w): the way that it learnt, backwards."""

    kind: Literal["sign_flip"]
    strength: float = Field(1.0, gt=0, description="s, in lengths of its honest update.")


class ScalingFault(FaultSection):
    """Sends w + s (w_k - w): counts for more than it should (model replacement, Bagdasaryan et al. 2020)."""

    kind: Literal["scaling"]
    strength: float = Field(10.0, gt=0, description="s, in lengths of its honest update.")


class NoiseFault(FaultSection):
    """Sends w + Gaussian noise, tensor by tensor s times as long as its honest update (Blanchard et al. 2017)."""

    kind: Literal["noise"]
    strength: float = Field(10.0, gt=0, description="s, in lengths of its honest update.")


class StaleFault(FaultSection):
    """Sends the weights of its first faulty round again and again: it no longer takes the global model in."""

    kind: Literal["stale"]


class ColludingFault(FaultSection):
    """All such hospitals send the same w + noise, so that they look like a majority that agrees."""

    kind: Literal["colluding"]
    strength: float = Field(1.0, gt=0, description="Length of the noise, tensor by tensor in lengths of w.")


class LabelFlipFault(Section):
    """Learns from wrong labels: its classes in reverse order; of masks, those of the foreground."""

    kind: Literal["label_flip"]


Fault = Annotated[
    SignFlipFault | ScalingFault | NoiseFault | StaleFault | ColludingFault | LabelFlipFault,
    Field(discriminator="kind"),
]
