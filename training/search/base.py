"""What every search space offers to the search loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.models.genotype import AnyGenotype, Provenance


class SearchableNeck(nn.Module, ABC):
    """A neck that holds all architectures of a space, weighted by architecture parameters.

    It maps a list of maps to a list of maps like every neck. `arch` has the architecture parameters by names such as
    `alpha_top_down_P5`; all other parameters are weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.arch = nn.ParameterDict()

    def sample(self, temperature: float, generator: torch.Generator) -> None:  # spaces without noise
        """Draw what the next forward passes in training mode depend on by chance. In eval mode nothing does."""

    @abstractmethod
    def probabilities(self) -> Mapping[str, Tensor]:
        """What each architecture parameter means now, such as the softmax of alpha: detached, on the CPU, by name."""

    @abstractmethod
    def genotype(self, provenance: Provenance) -> AnyGenotype:
        """The discrete architecture that the parameters stand for now."""

    @abstractmethod
    def derive(self) -> nn.Module:
        """The discrete neck of `genotype`, with the weights that it has here."""


def initial(*shape: int, generator: torch.Generator | None = None) -> nn.Parameter:
    """Logits of an undecided choice: nearly equal, with a little noise that breaks ties."""
    return nn.Parameter(1e-3 * torch.randn(*shape, generator=generator))


def entropy(probabilities: Tensor) -> float:
    """Of one distribution [n], relative to the largest possible: 1 is undecided, 0 decided."""
    if len(probabilities) < 2:
        return 0.0
    value = (
        -(probabilities * probabilities.clamp(min=1e-12).log()).sum() / torch.tensor(float(len(probabilities))).log()
    )
    return float(value)
