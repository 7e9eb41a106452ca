"""What a FastVLM checkpoint says of its own shape: sizes, never weights.

Widths and depths of the vision encoder are read off the tensors, so one code path serves the
published models, a fine-tune with another width, and the built-in miniature.
"""

from dataclasses import dataclass

# FastViTHD's attention uses heads of 32 channels at every width (ml-fastvlm, mci.py MHSA).
VISION_HEAD_DIM = 32
# The stem halves twice, each of the four downsamples halves once.
VISION_PATCH_SIZE = 64


@dataclass(frozen=True)
class VisionConfig:
    """FastViTHD: five stages, the first three RepMixer, the last two attention.

    Attributes:
        image_size: side of the square input in pixels, a multiple of 64.
        depths: blocks in each of the five stages (published models: 2, 12, 24, 4, 2).
        widths: channels of each stage (published models: 96, 192, 384, 768, 1536).
        ffn_widths: inner channels of each stage's ConvFFN (published models: 4 x width).
        hidden_size: channels of the last feature map, `mm_hidden_size` (published models: 3072).
        se_width: inner channels of conv_exp's squeeze-and-excite (published models: 192).
    """

    image_size: int
    depths: tuple[int, int, int, int, int]
    widths: tuple[int, int, int, int, int]
    ffn_widths: tuple[int, int, int, int, int]
    hidden_size: int
    se_width: int

    @property
    def num_image_tokens(self) -> int:
        return (self.image_size // VISION_PATCH_SIZE) ** 2


@dataclass(frozen=True)
class DecoderConfig:
    """Qwen2, under the field names of Hugging Face's Qwen2Config.

    Attributes:
        vocab_size: rows of logits that are kept, which is `len(tokenizer)`: predict.py resizes
            the embeddings to it before it generates.
        is_tied: lm_head is the embedding matrix (said by the tensors, not by the config).
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


@dataclass(frozen=True)
class FastVLMConfig:
    """The whole model: vision encoder, two-layer projector, decoder."""

    vision: VisionConfig
    decoder: DecoderConfig
