"""The complete Qwen2-VL: image features in place of word embeddings, three-axis positions, logits (arXiv 2409.12191).

    input_ids  ... <|vision_start|> <|image_pad|> x n <|vision_end|> ...       one placeholder per feature vector
    pixel_values -> visual -> n features ----^ replace the embeddings of the placeholders
    rope_positions -> (time, height, width) of every token
    model (decoder layers) -> hidden states -> head -> logits of the next token

Section 2.1 of the paper describes the parts. The released 2B ties the head to the word embeddings; the 7B does not.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import Qwen2VLConfig
from models.text import Attend, TextModel, causal_mask, masked_attention
from models.vision import VisionModel


class Qwen2VL(nn.Module):
    """The model. B rows, T tokens, D hidden, V vocabulary, N patches, I images.

    Images only: <|video_pad|> has no special meaning here."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionModel(config.vision)
        self.model = TextModel(config.text)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the matrix of the head."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """pixel_values (N, 1176), image_grid_thw (I, 3) -> (N / 4, D)."""
        return self.visual(pixel_values.to(self.visual.patch_embed.proj.weight.dtype), image_grid_thw)

    def embed(self, input_ids: Tensor, image_features: Tensor | None) -> Tensor:
        """Word embeddings, with the features in place of the <|image_pad|> tokens in order: (B, T) -> (B, T, D).

        Raises: ValueError if the numbers of placeholders and features differ. They are counted on a CPU only: elsewhere
        the host would wait for the device, and `rope_positions` and the tower have compared both with the grid."""
        embeds = self.model.embed_tokens(input_ids)                             # (B, T, D)
        if image_features is None:
            return embeds
        placeholder = input_ids == self.config.image_token_id                   # (B, T)
        if placeholder.is_cpu and placeholder.sum().item() != len(image_features):
            raise ValueError(f"input_ids has {placeholder.sum().item()} image placeholders, the images give "
                             f"{len(image_features)} features; both must come from the same processor call")
        if not len(image_features):
            return embeds
        # not masked_scatter, in whose backward pass the host waits for a GPU
        order = (placeholder.flatten().cumsum(0) - 1).clamp(min=0)              # (B * T,) the feature of a placeholder
        features = image_features.to(embeds.dtype).index_select(0, order).view_as(embeds)
        return torch.where(placeholder[..., None], features, embeds)

    def hidden_states(self, embeds: Tensor, position_ids: Tensor, attend: Attend,
                      wanted: Tensor | None = None) -> Tensor:
        """embeds (B, T, D), position_ids (3, B, T) -> (B, T, D), the input of the head; with flat indices `wanted`
        (C,) those of these tokens alone, (C, D)."""
        return self.model(embeds, position_ids, attend, wanted)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) in float32."""
        return F.linear(hidden, self.head_weight).float()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None,
                image_grid_thw: Tensor | None = None) -> Tensor:
        """Logits of the token after each position: (B, T) -> (B, T, V) float32; at padding they are meaningless.

        Raises: ValueError if images and placeholders do not match."""
        position_ids, _ = rope_positions(input_ids, attention_mask, image_grid_thw, self.config)
        features = None if pixel_values is None else self.image_features(pixel_values, image_grid_thw)
        mask = None if attention_mask is None else causal_mask(attention_mask)
        embeds = self.embed(input_ids, features)
        return self.logits(self.hidden_states(embeds, position_ids, masked_attention(mask)))


def rope_positions(input_ids: Tensor, attention_mask: Tensor | None, image_grid_thw: Tensor | None,
                   config: Qwen2VLConfig) -> tuple[Tensor, Tensor]:
    """The (time, height, width) position of every token, and the next position of each row.

    Text counts up on all three axes. An image that starts at p has time p, height p + row and width p + column of the
    merged grid, and the text after it continues at p + max(rows, columns): an image of 9 x 16 = 144 tokens uses only 16
    positions. Padding has position 0 and is not counted.
    Shapes: input_ids, attention_mask (B, T), image_grid_thw (I, 3) in patches -> (3, B, T), (B,), int64.
    Raises: ValueError if placeholders and grids do not match.
    Source: arXiv 2409.12191, section 2.1, figure 3.
    """
    rows = input_ids.cpu().numpy()                                              # (B, T)
    real = np.ones_like(rows, bool) if attention_mask is None else attention_mask.bool().cpu().numpy()
    grids = iter([] if image_grid_thw is None else image_grid_thw.tolist())
    positions, next_position = np.zeros((3, *rows.shape), np.int64), np.zeros(len(rows), np.int64)
    for row, (ids, keep) in enumerate(zip(rows, real, strict=True)):
        is_image = (ids[keep] == config.image_token_id).tolist()
        positions[:, row, keep], next_position[row] = _row_positions(is_image, grids, config)
    if left := list(grids):
        raise ValueError(f"input_ids has no <|image_pad|> tokens for {len(left)} images of image_grid_thw: {left}")
    return torch.from_numpy(positions).to(input_ids.device), torch.from_numpy(next_position).to(input_ids.device)


def _row_positions(is_image: list[bool], grids: Iterator[list[int]], config: Qwen2VLConfig) -> tuple[np.ndarray, int]:
    """One unpadded row -> its positions (3, T) and the next position. Takes one grid per run of placeholders.

    In numpy, whose small operations are several times faster than torch's."""
    runs, position = [np.zeros((3, 0), np.int64)], 0
    for image, run in groupby(is_image):
        length = len(list(run))
        offsets = _image_positions(next(grids, None), length, config) if image else np.tile(np.arange(length), (3, 1))
        runs.append(position + offsets)
        position += int(offsets.max()) + 1
    return np.concatenate(runs, axis=1), position


def _image_positions(grid: list[int] | None, placeholders: int, config: Qwen2VLConfig) -> np.ndarray:
    """(3, rows * columns): time 0, height = row, width = column."""
    merge = config.vision.spatial_merge_size
    frames, rows, columns = (0, 0, 0) if grid is None else (grid[0], grid[1] // merge, grid[2] // merge)
    if frames != 1 or rows * columns != placeholders:
        raise ValueError(f"input_ids has a run of {placeholders} <|image_pad|> tokens, but its image has the grid "
                         f"(frames, rows, columns) {grid}: need 1 frame and rows * columns / {merge**2} tokens")
    return np.indices((1, rows, columns)).reshape(3, -1)


def init_weights(model: Qwen2VL, generator: torch.Generator) -> None:
    """Random weights for training from scratch, in place.

    Matrices are normal with std 1 / sqrt(inputs), so that a layer's output is as large as its input. Those that write
    to the residual stream are also divided by sqrt(2 x layers), so that the sum over all layers is, too.
    Embeddings have std 0.02, so that the first logits of a tied head are almost uniform; norms are 1, biases 0."""
    depth = {"model": model.config.text.num_hidden_layers, "visual": model.config.vision.depth}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                parameter.normal_(0, 0.02, generator=generator)
            elif parameter.dim() == 1:
                parameter.fill_(1 if name.endswith("weight") else 0)
            else:
                std = 1 / math.sqrt(parameter[0].numel())
                if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
                    std /= math.sqrt(2 * depth[name.split(".")[0]])
                parameter.normal_(0, std, generator=generator)


def frozen_model(config: Qwen2VLConfig, tensors: Mapping[str, Tensor]) -> Qwen2VL:
    """A frozen model that uses these tensors, by name, without copying them."""
    with torch.device("meta"):
        model = Qwen2VL(config)
    model.load_state_dict({name: tensor.detach() for name, tensor in tensors.items()}, assign=True)
    return model.requires_grad_(False).eval()


def new_model(config: Qwen2VLConfig, generator: torch.Generator) -> Qwen2VL:
    """A model with random weights from the generator; the global random state is not used."""
    with torch.device("meta"):
        model = Qwen2VL(config)
    model.to_empty(device=generator.device)
    init_weights(model, generator)
    return model
