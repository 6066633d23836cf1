"""`vae`: a variational auto-encoder of Linear layers on 28x28 images; trained on its own loss, not on labels.

>>> sum(parameter.numel() for parameter in Vae().parameters())
652824
>>> model = Vae().eval()
>>> model(torch.rand(2, 1, 28, 28)).shape
torch.Size([2, 784])
>>> reconstruction, mu, log_variance = model.train()(torch.rand(2, 1, 28, 28))
>>> mu.shape
torch.Size([2, 20])
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["Vae"]


class Vae(nn.Module):
    """fc1 784 → 400; fc21 and fc22 400 → 20 (mean, log-variance); fc3 20 → 400; fc4 400 → 784. 652,824
    parameters.

    Pixels must lie in 0..1 (`input_normalise` says so to `secateur.data.load_for`). In training the code is
    sampled, and mean and log-variance are returned for the loss. In evaluation the forward pass takes the mean, so
    that it is a function, and returns the reconstruction alone, so that the width of the code can be cut without
    changing the model's interface; `evaluation_metrics` samples once with a fixed seed, as the loss is defined
    over samples. torch's own initialisation.
    """

    input_normalise = "none"

    def __init__(self, in_channels: int = 1, hidden: int = 400, latent: int = 20) -> None:
        super().__init__()
        self.input_shape = (in_channels, 28, 28)
        pixels = in_channels * 28 * 28
        self.fc1 = nn.Linear(pixels, hidden)
        self.fc21 = nn.Linear(hidden, latent)
        self.fc22 = nn.Linear(hidden, latent)
        self.fc3 = nn.Linear(latent, hidden)
        self.fc4 = nn.Linear(hidden, pixels)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of the code."""
        hidden = torch.relu(self.fc1(images.flatten(1)))
        return self.fc21(hidden), self.fc22(hidden)

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Pixels in 0..1 from a code."""
        return torch.sigmoid(self.fc4(torch.relu(self.fc3(code))))

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The reconstruction [N, pixels]; in training (reconstruction, mean, log-variance)."""
        mu, log_variance = self.encode(images)
        noise = torch.randn_like(mu) if self.training else torch.zeros_like(mu)
        reconstruction = self.decode(mu + noise * torch.exp(0.5 * log_variance))
        return (reconstruction, mu, log_variance) if self.training else reconstruction

    @staticmethod
    def terms(
        outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(reconstruction, KLD), each summed over the batch: binary cross-entropy, and divergence from the
        unit normal."""
        reconstruction, mu, log_variance = (part.float() for part in outputs)
        pixels = images.flatten(1).float()
        # Torch's own binary cross-entropy, which autocast refuses to run: logarithms no lower than -100. A pixel that
        # is exactly 0 or 1 avoids the logarithm, whose infinite slope would make the gradient NaN.
        log_on = _log(reconstruction, torch.log, reconstruction > 0)
        log_off = _log(-reconstruction, torch.log1p, reconstruction < 1)
        error = -(pixels * log_on + (1 - pixels) * log_off).sum()
        divergence = -0.5 * (1 + log_variance - mu.square() - log_variance.exp()).sum()
        return error, divergence

    def training_loss(
        self,
        outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Reconstruction plus KLD, per image: what `train` minimises. Labels are ignored."""
        error, divergence = self.terms(outputs, images)
        return (error + divergence) / images.shape[0]

    def evaluation_metrics(
        self, images: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Sums over the batch of `loss` (the total), `reconstruction` and `kld`; the code is sampled with
        `generator`."""
        mu, log_variance = self.encode(images)
        noise = torch.randn(mu.shape, generator=generator).to(mu)
        outputs = self.decode(mu + noise * torch.exp(0.5 * log_variance)), mu, log_variance
        error, divergence = self.terms(outputs, images)
        return {"loss": error + divergence, "reconstruction": error, "kld": divergence}


def _log(
    value: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor], finite: torch.Tensor
) -> torch.Tensor:
    """A logarithm that is -100 where it would be infinite or lower, with a gradient of 0 there."""
    inside = torch.where(finite, value, torch.full_like(value, 0.5))
    return torch.where(finite, function(inside).clamp(min=-100), torch.full_like(value, -100.0))
