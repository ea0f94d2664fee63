"""Drop masks: which elements of an activation are quantized in an iteration, the others stay float (QDrop)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Masks"]


class Masks:
    """Drop masks: on a GPU drawn there, on the CPU cut from a bank of random bits at random places, as cheap as a slice.

    Attributes:
        local: the GPU's generators, none on the CPU.
    """

    def __init__(self, probability: float, device: torch.device, generator: torch.Generator) -> None:
        self.probability, self.device, self.generator = probability, device, generator
        self.bank = torch.empty(0, device=device)
        self.uses = 0
        self.local: tuple[torch.Generator, ...] = ()
        self.restart()

    @property
    def active(self) -> bool:
        """False where everything is quantized: then there are no masks."""
        return self.probability < 1.0

    def restart(self) -> None:
        """Draw from a new generator of the GPU."""
        if self.device.type == "cuda" and self.active:
            seed = int(torch.randint(0, 1 << 62, (), generator=self.generator))
            self.local = (torch.Generator(self.device).manual_seed(seed),)

    def draw(self, like: Tensor) -> Tensor | None:
        """1 with ``probability``, else 0, ``like``'s shape, float32; None where everything is quantized."""
        if not self.active:
            return None
        if self.local:
            return torch.empty_like(like, dtype=torch.float32).bernoulli_(self.probability, generator=self.local[0])
        count = like.numel()
        # A bank larger than what is cut from it, renewed now and then, keeps masks of different steps apart.
        if self.bank.numel() < 2 * count or self.uses >= 256:
            size = max(2 * count, self.bank.numel())
            bank = torch.rand(size, device="cpu", generator=self.generator) < self.probability
            self.bank, self.uses = bank.to(self.device, torch.float32), 0
        self.uses += 1
        start = int(torch.randint(0, self.bank.numel() - count + 1, (), generator=self.generator))
        if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
            return self.bank.as_strided(like.shape, like.stride(), start)
        return self.bank[start : start + count].view(like.shape)
