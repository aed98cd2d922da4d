"""A patch discriminator that a tokenizer is fitted against (Isola et al. 2017), with the weight of VQ-GAN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDTH, _LARGEST = 32, 1e4


def discriminator() -> nn.Sequential:
    """Return a network from images (B, 3, H, W) to a score for each patch (B, 1, H/4, W/4): high for real ones."""
    return nn.Sequential(
        nn.Conv2d(3, _WIDTH, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(_WIDTH, 2 * _WIDTH, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * _WIDTH), nn.LeakyReLU(0.2),
        nn.Conv2d(2 * _WIDTH, 1, 3, 1, 1),
    )  # fmt: skip


class Adversary:
    """The discriminator and its optimizer."""

    def __init__(self, lr: float, device: str) -> None:
        self.network = discriminator().to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, betas=(0.5, 0.9))

    def term(self, decoded: Tensor, reconstruction: Tensor, last: nn.Parameter) -> Tensor:
        """Return what decoded images (B, 3, H, W) lose for being told from real ones.

        Its gradient at the decoder's last layer is made as long as that of the reconstruction's loss (Esser et al.
        2021, eq. 7).
        """
        fooled = -self.network(decoded).mean()
        of_rest, of_this = (torch.autograd.grad(each, last, retain_graph=True)[0] for each in (reconstruction, fooled))
        return (of_rest.norm() / (of_this.norm() + 1e-4)).clamp(max=_LARGEST).detach() * fooled

    def learn(self, images: Tensor, decoded: Tensor) -> None:
        """Take a step towards telling them apart, by the hinge loss."""
        loss = 0.5 * (F.relu(1 - self.network(images)).mean() + F.relu(1 + self.network(decoded.detach())).mean())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
