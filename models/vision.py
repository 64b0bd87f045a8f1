"""The vision tower: patches of an image in, vectors for the language model out (arXiv 2409.12191, section 2.1).

An image is given as rows of flattened 14 x 14 patches in merge-block order: the four patches of each 2 x 2 block are
consecutive. A linear layer embeds them; in the transformer blocks all patches of one image attend to each other, with
rotary positions for row and column; the merger joins each block of four into one vector of the language model's width.
Images of any size work ("naive dynamic resolution"): a larger image gives more vectors.

Parameter names and shapes equal those of the released checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.config import VisionConfig
from models.text import rotate


class PatchEmbed(nn.Module):
    """(N, 1176) flattened patches -> (N, embed_dim).

    The checkpoint stores a Conv3d whose kernel is exactly one patch, so it is a linear layer over the patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.embed_dim, kernel, stride=kernel, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.linear(pixel_values, self.proj.weight.flatten(1))


def vision_rotary(height: int, width: int, config: VisionConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotation angles of an image's patches, in merge-block order, in float32.

        angle[patch] = [row * f, column * f], repeated;   f[j] = 10000^(-4 j / E),  j = 0 .. E/4 - 1

    Shapes: height and width count patches; cos, sin (height * width, E), E the head dim."""
    merge, quarter = config.spatial_merge_size, config.head_dim // 4
    steps = torch.arange(quarter, device=device, dtype=torch.float32)
    frequencies = 10000.0 ** (-steps / quarter)                                 # (E/4,)
    row, column = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device),
                                 indexing="ij")                                 # (height, width)
    blocks = torch.stack([row, column], dim=-1).view(height // merge, merge, width // merge, merge, 2)
    position = blocks.transpose(1, 2).reshape(-1, 2)                            # (height * width, 2)
    angles = (position[..., None] * frequencies).flatten(1).repeat(1, 2)        # (height * width, E)
    return angles.cos(), angles.sin()


class VisionAttention(nn.Module):
    """Full attention among the patches of each image. I images of S patches, H heads of size E."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.rotate = rotate                                # models/fast/recomputed.py can replace it
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        images, patches, _ = x.shape
        qkv = self.qkv(x).view(images, patches, 3, self.num_heads, -1)          # (I, S, 3, H, E)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                                    # (I, H, S, E) each
        q = self.rotate(q.float(), cos, sin).to(v.dtype)        # in float32, like the released model
        k = self.rotate(k.float(), cos, sin).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v)                             # (I, H, S, E)
        return self.proj(y.transpose(1, 2).flatten(2))                          # (I, S, H * E)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), an approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


class VisionMLP(nn.Module):
    """fc2(quick_gelu(fc1(x)))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, config.embed_dim)
        self.activation = quick_gelu                        # models/fast/recomputed.py can replace it

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class VisionBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with LayerNorm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nn.Module):
    """Each 2 x 2 block of patches -> one vector of the language model's width: (I, S, embed_dim) -> (I, S/4, hidden).

    In merge-block order this is a reshape, because four consecutive rows are one block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.block_dim = config.embed_dim * config.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(self.block_dim, self.block_dim), nn.GELU(),
                                 nn.Linear(self.block_dim, config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).reshape(len(x), -1, self.block_dim))


class VisionModel(nn.Module):
    """pixel_values (N, 1176), image_grid_thw (I, 3) -> features (N / 4, hidden_size), image after image.

    image_grid_thw counts patches: (frames, rows, columns). Frames do not attend to each other. Frames of equal size run
    as one batch and different sizes one after the other, so neither masks nor padding are needed."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        sizes = [(rows, columns) for frames, rows, columns in image_grid_thw.tolist() for _ in range(frames)]
        check_patches(pixel_values, sizes, self.config)
        if not sizes:
            return pixel_values.new_zeros(0, self.config.hidden_size)
        x = self.patch_embed(pixel_values).split([rows * columns for rows, columns in sizes])
        features = {}
        for size in dict.fromkeys(sizes):
            members = [index for index, other in enumerate(sizes) if other == size]
            batch = self.encode(torch.stack([x[index] for index in members]), *size)  # (members, S/4, hidden)
            features.update(zip(members, batch, strict=True))
        return torch.cat([features[index] for index in range(len(sizes))])

    def encode(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Images of one size: (I, rows * columns, embed_dim) -> (I, rows * columns / 4, hidden_size)."""
        cos, sin = vision_rotary(rows, columns, self.config, x.device)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, use_reentrant=False)
            else:
                x = block(x, cos, sin)
        return self.merger(x)


def check_patches(pixel_values: Tensor, sizes: list[tuple[int, int]], config: VisionConfig) -> None:
    """Raises: ValueError unless pixel_values has exactly the patches of these frame sizes."""
    expected = (sum(rows * columns for rows, columns in sizes), config.patch_dim)
    if tuple(pixel_values.shape) != expected:
        raise ValueError(f"pixel_values has the shape {tuple(pixel_values.shape)}, image_grid_thw needs {expected}; "
                         "both must come from the same processor call")
    merge = config.spatial_merge_size
    if odd := [size for size in sizes if size[0] % merge or size[1] % merge]:
        raise ValueError(f"grid {odd[0]} is not a multiple of {merge}; the sides of an image must be multiples of "
                         f"{merge * config.patch_size} pixels (smart_resize)")
