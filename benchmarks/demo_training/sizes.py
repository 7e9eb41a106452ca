"""The sizes of the built-in model."""

from demo_data.drawing import IMAGE_SIZE

from fastvlm_onnx.export.architecture.config import DecoderConfig, FastVLMConfig, VisionConfig

VOCAB_ROWS = 768  # rows in the file; the tokenizer is shorter, as in the published checkpoints
NUM_MERGES = 480
VISION = VisionConfig(
    image_size=IMAGE_SIZE,
    depths=(1, 2, 5, 4, 3),
    widths=(16, 32, 64, 128, 256),
    ffn_widths=(64, 128, 256, 512, 1024),
    hidden_size=512,
    se_width=32,
)
LANGUAGE = DecoderConfig(
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=VOCAB_ROWS,
    max_position_embeddings=2048,
    rope_theta=1_000_000.0,
    rms_norm_eps=1e-6,
    eos_token_ids=(),
    is_tied=False,
)
CONFIG = FastVLMConfig(VISION, LANGUAGE)
