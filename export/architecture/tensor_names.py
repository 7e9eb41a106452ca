"""Names of tensors and prefixes in a checkpoint, as Apple stores it."""

from typing import Final

EMBED_TOKENS: Final = "model.embed_tokens.weight"
LM_HEAD: Final = "lm_head.weight"
VISION_PREFIX: Final = "model.vision_tower.vision_tower.model."
PROJECTOR_PREFIX: Final = "model.mm_projector."
