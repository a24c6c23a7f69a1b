"""A vision model of your own: in `multiscale_forward`, and as an encoder that has a name.

python examples/own_vit.py
pip install --editable examples && s2robot bench encoder --encoder own-vit     # by its entry point: pyproject.toml
"""

import numpy as np
import torch
from torch import Tensor, nn

from s2robot import Encoder, multiscale_forward
from s2robot.backbones import load_backbone
from s2robot.catalogue import ImageContract, NamedEncoder
from s2robot.encoder import EncoderConfig
from s2robot.own_models import OwnModel

SIZE, PATCH, WIDTH = 64, 8, 96


class OwnViT(nn.Module):
    """Patches and a CLS through two transformer blocks; where a patch is, sine and cosine say for any image size."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=4 * WIDTH, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, num_layers=2, enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1+N, D)."""
        patches = self.patches(images)  # (B, D, h, w)
        here = patches.device
        waves = 2.0 ** -torch.arange(WIDTH // 4, device=here)
        y, x = (torch.arange(side, device=here)[:, None] * waves for side in patches.shape[-2:])  # (h, D/4), (w, D/4)
        rows, columns = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (y, x))
        where = torch.cat(torch.broadcast_tensors(rows[:, None], columns[None]), dim=2)  # (h, w, D)
        tokens = patches.flatten(2).transpose(1, 2) + where.flatten(0, 1)
        return self.blocks(torch.cat([self.cls.expand(tokens.shape[0], -1, -1), tokens], dim=1))


def make(pretrained: bool) -> nn.Module:
    """Your weights go in here: torch.load(..., weights_only=True), or safetensors."""
    if pretrained:
        raise FileNotFoundError("this example has no trained weights: random_weights=True, or --random_weights")
    return OwnViT()


CONTRACT = ImageContract(  # what an image must be before it goes in, and what comes out
    size=SIZE, patch=PATCH, width=WIDTH, prefix_tokens=1, class_token=True, heads=4, depth=2,
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", antialias=True,
)  # fmt: skip
ENCODER = NamedEncoder("own-vit", OwnModel(make, CONTRACT), licence="MIT", source="examples/own_vit.py")

if __name__ == "__main__":
    with torch.no_grad():
        tokens = multiscale_forward(OwnViT().eval(), torch.rand(2, 3, SIZE, SIZE), scales=(1, 2), num_prefix_token=1)
    print(f"multiscale_forward: tokens {tuple(tokens.shape)}")  # (2, 1+64, 2*96)

    encoder = Encoder(load_backbone(ENCODER, random_weights=True), EncoderConfig(scales=(1, 2)))
    frames = np.random.default_rng(0).integers(0, 256, (2, 120, 160, 3), dtype=np.uint8)
    print(f"as an encoder: map {tuple(encoder(frames).map.shape)}, {encoder.fingerprint[:12]}, {encoder.engine}")
