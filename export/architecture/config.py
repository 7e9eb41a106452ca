"""The sizes of a FastVLM; weights are not held here.

Widths and depths of the vision encoder are read from the shapes of tensors. The same code therefore
serves the published models, a fine-tune with another width, and the built-in miniature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# FastViTHD's attention uses heads of 32 channels at every width (ml-fastvlm, mci.py MHSA).
VISION_HEAD_DIM = 32
# The stem halves the sides of the image twice, and each of four downsamples halves them once.
VISION_PATCH_SIZE = 64


@dataclass(frozen=True)
class VisionConfig:
    """The sizes of FastViTHD, which has three RepMixer stages, then two attention stages.

    Attributes:
        image_size: the side of the square input in pixels, a multiple of 64.
        depths: the number of blocks in each stage (published models: 2, 12, 24, 4, 2).
        widths: the channels of each stage (published models: 96, 192, 384, 768, 1536).
        ffn_widths: the inner channels of each stage's ConvFFN (published models: 4 x width).
        hidden_size: the channels of the last map, `mm_hidden_size` (published models: 3072).
        se_width: the inner channels of conv_exp's squeeze-and-excite (published models: 192).
    """

    image_size: int
    depths: tuple[int, int, int, int, int]
    widths: tuple[int, int, int, int, int]
    ffn_widths: tuple[int, int, int, int, int]
    hidden_size: int
    se_width: int

    @property
    def num_image_tokens(self) -> int:
        """The number of tokens that an image takes in the prompt."""
        return (self.image_size // VISION_PATCH_SIZE) ** 2


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes of Qwen2, under the field names of Hugging Face's Qwen2Config.

    Attributes:
        vocab_size: the number of logits, `len(tokenizer)`. predict.py resizes the embeddings to
            this length before it generates.
        is_tied: whether lm_head is the embedding matrix. The tensors decide, not config.json.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    eos_token_ids: tuple[int, ...]
    is_tied: bool

    @property
    def weight_shapes(self) -> dict[str, tuple[int, int]]:
        """The shape [out, in] of each matrix of a layer, by its name in the checkpoint."""
        q_width = self.num_attention_heads * self.head_dim
        kv_width = self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (q_width, self.hidden_size),
            "k_proj": (kv_width, self.hidden_size),
            "v_proj": (kv_width, self.hidden_size),
            "o_proj": (self.hidden_size, q_width),
            "gate_proj": (self.intermediate_size, self.hidden_size),
            "up_proj": (self.intermediate_size, self.hidden_size),
            "down_proj": (self.hidden_size, self.intermediate_size),
        }

    def shape_of(self, weights: Sequence[str]) -> tuple[int, int]:
        """Return the shape [out, in] of some matrices of a layer, stacked."""
        shapes = [self.weight_shapes[weight] for weight in weights]
        return sum(out_size for out_size, _ in shapes), shapes[0][1]


@dataclass(frozen=True)
class FastVLMConfig:
    """The sizes of the whole model: vision encoder, two-layer projector, decoder."""

    vision: VisionConfig
    decoder: DecoderConfig
