"""FastVLM in PyTorch: the reference that graphs are compared with. Users do not run it.

FastViTHD is written here as an nn.Module with Apple's parameter names, so a checkpoint loads by
name. The language model is transformers' own Qwen2. Names and prefixes are repeated here on
purpose: a reference must not share code with the graphs that are compared with it.

Source: arXiv 2412.13303 and apple/ml-fastvlm @592b4ad (mci.py, llava_arch.py), in the
reparameterised form in which the checkpoints are stored.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM

from fastvlm_onnx.export.architecture.config import (
    VISION_HEAD_DIM,
    DecoderConfig,
    FastVLMConfig,
    VisionConfig,
)

VISION_PREFIX = "model.vision_tower.vision_tower.model."
PROJECTOR_PREFIX = "model.mm_projector."


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate that is computed from the channel means of the whole image."""

    def __init__(self, width: int, se_width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, se_width, 1)
        self.expand = nn.Conv2d(se_width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(functional.relu(self.reduce(gate))))


class MobileOneBlock(nn.Module):
    """Convolution, squeeze-and-excite if `se_width` is given, then exact GELU."""

    def __init__(
        self,
        in_width: int,
        out_width: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        se_width: int | None = None,
    ) -> None:
        super().__init__()
        self.reparam_conv = nn.Conv2d(
            in_width, out_width, kernel, stride, kernel // 2, groups=groups
        )
        self.se = nn.Identity() if se_width is None else SqueezeExcite(out_width, se_width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.se(self.reparam_conv(x)))


class ReparamLargeKernelConv(nn.Module):
    """7x7 convolution of stride 2 that doubles the channels, then GELU."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.lkb_reparam = nn.Conv2d(in_width, out_width, 7, 2, 3, groups=in_width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.lkb_reparam(x))


class PatchEmbed(nn.Module):
    """The downsample between two stages: two convolutions with a GELU after each."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            ReparamLargeKernelConv(in_width, out_width), MobileOneBlock(out_width, out_width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class DepthwiseConv(nn.Module):
    """RepMixer (3x3) or RepCPE (7x7), whose residual is folded into the stored weight."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.reparam_conv = nn.Conv2d(width, width, kernel, 1, kernel // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return self.reparam_conv(x)


class ConvFFN(nn.Module):
    """7x7 depthwise convolution, BatchNorm (which the checkpoint stores), then a two-layer MLP."""

    def __init__(self, width: int, ffn_width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        self.conv.add_module("conv", nn.Conv2d(width, width, 7, 1, 3, groups=width, bias=False))
        self.conv.add_module("bn", nn.BatchNorm2d(width, eps=1e-5))
        self.fc1 = nn.Conv2d(width, ffn_width, 1)
        self.fc2 = nn.Conv2d(ffn_width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(self.conv(x))))


class RepMixerBlock(nn.Module):
    def __init__(self, width: int, ffn_width: int) -> None:
        super().__init__()
        self.token_mixer = DepthwiseConv(width, 3)
        self.convffn = ConvFFN(width, ffn_width)
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.layer_scale * self.convffn(x)


class LayerNormChannel(nn.Module):
    """LayerNorm over the channels of a map [B, C, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = functional.layer_norm(
            x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-5
        )
        return tokens.permute(0, 3, 1, 2)


class MHSA(nn.Module):
    """Self-attention over all positions of the map, without mask or position encoding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = width // VISION_HEAD_DIM
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, rows, columns = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (
            self.qkv(tokens)
            .reshape(batch, rows * columns, 3, self.num_heads, VISION_HEAD_DIM)
            .permute(2, 0, 3, 1, 4)
        )
        weights = ((q * VISION_HEAD_DIM**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(batch, rows * columns, width)
        return self.proj(mixed).transpose(1, 2).reshape(batch, width, rows, columns)


class AttentionBlock(nn.Module):
    def __init__(self, width: int, ffn_width: int) -> None:
        super().__init__()
        self.norm = LayerNormChannel(width)
        self.token_mixer = MHSA(width)
        self.convffn = ConvFFN(width, ffn_width)
        self.layer_scale_1 = nn.Parameter(torch.ones(width, 1, 1))
        self.layer_scale_2 = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1 * self.token_mixer(self.norm(x))
        return x + self.layer_scale_2 * self.convffn(x)


class FastViTHD(nn.Module):
    """The vision encoder up to and including conv_exp, without the unused classification head."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        widths, ffn_widths, depths = config.widths, config.ffn_widths, config.depths
        self.patch_embed = nn.Sequential(
            MobileOneBlock(3, widths[0], 3, stride=2),
            MobileOneBlock(widths[0], widths[0], 3, stride=2, groups=widths[0]),
            MobileOneBlock(widths[0], widths[0], 1),
        )

        def stage(i: int, block: Callable[[int, int], nn.Module]) -> nn.Sequential:
            return nn.Sequential(*(block(widths[i], ffn_widths[i]) for _ in range(depths[i])))

        self.network = nn.ModuleList(
            [
                stage(0, RepMixerBlock),
                PatchEmbed(widths[0], widths[1]),
                stage(1, RepMixerBlock),
                PatchEmbed(widths[1], widths[2]),
                stage(2, RepMixerBlock),
                PatchEmbed(widths[2], widths[3]),
                DepthwiseConv(widths[3], 7),
                stage(3, AttentionBlock),
                PatchEmbed(widths[3], widths[4]),
                DepthwiseConv(widths[4], 7),
                stage(4, AttentionBlock),
            ]
        )
        self.conv_exp = MobileOneBlock(
            widths[4], config.hidden_size, 3, groups=widths[4], se_width=config.se_width
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map float32 [B, 3, S, S] in 0..1 to image_hidden_states [B, (S / 64)^2, hidden_size]."""
        x = self.patch_embed(pixel_values)
        for layer in self.network:
            x = layer(x)
        return self.conv_exp(x).flatten(2).transpose(1, 2)


def build_projector(in_size: int, hidden_size: int) -> nn.Sequential:
    """mlp2x_gelu: Linear, exact GELU, Linear."""
    return nn.Sequential(
        nn.Linear(in_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
    )


def build_decoder(config: DecoderConfig) -> Qwen2ForCausalLM:
    """Build transformers' Qwen2 in float32, with eager attention and random weights."""
    with torch.random.fork_rng():
        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_key_value_heads,
                max_position_embeddings=config.max_position_embeddings,
                rms_norm_eps=config.rms_norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                tie_word_embeddings=config.is_tied,
                use_sliding_window=False,
                attn_implementation="eager",
                dtype=torch.float32,
            )
        ).eval()


class ReferenceFastVLM(nn.Module):
    """FastVLM with Apple's arithmetic in float32, and greedy decoding only."""

    def __init__(self, config: FastVLMConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder = FastViTHD(config.vision)
        self.projector = build_projector(config.vision.hidden_size, config.decoder.hidden_size)
        self.decoder = build_decoder(config.decoder)

    def load_checkpoint(self, tensors: Mapping[str, Tensor]) -> None:
        """Load tensors under Apple's names; cut lm_head and embed_tokens to the vocabulary.

        Args:
            tensors: every tensor that the model needs, in any float dtype.

        Raises:
            RuntimeError: a tensor is missing, surplus, or of another shape, as torch reports it.
        """
        rows = self.config.decoder.vocab_size
        vision: dict[str, Tensor] = {}
        projector: dict[str, Tensor] = {}
        decoder: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if name.startswith(VISION_PREFIX):
                if not name.endswith(("head.proj", "num_batches_tracked")):
                    vision[name.removeprefix(VISION_PREFIX)] = tensor.float()
            elif name.startswith(PROJECTOR_PREFIX):
                projector[name.removeprefix(PROJECTOR_PREFIX)] = tensor.float()
            elif name in ("model.embed_tokens.weight", "lm_head.weight"):
                decoder[name] = tensor[:rows].float()
            else:
                decoder[name] = tensor.float()
        if self.config.decoder.is_tied:
            decoder["lm_head.weight"] = decoder["model.embed_tokens.weight"]
        counters = {
            name: tensor
            for name, tensor in self.vision_encoder.state_dict().items()
            if name.endswith("num_batches_tracked")
        }
        self.vision_encoder.load_state_dict(vision | counters)
        self.projector.load_state_dict(projector)
        self.decoder.load_state_dict(decoder)
        self.eval()

    @torch.inference_mode()
    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Map float32 [B, 3, S, S] to image_features float32 [B, num_image_tokens, hidden_size]."""
        return self.projector(self.vision_encoder(pixel_values))

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Map int64 [B, sequence_length] to float32 [B, sequence_length, hidden_size]."""
        return self.decoder.get_input_embeddings()(input_ids)

    @torch.inference_mode()
    def logits(self, inputs_embeds: Tensor) -> Tensor:
        """Return the logits of every position, float32 [B, sequence_length, vocab_size]."""
        return self.decoder(inputs_embeds=inputs_embeds, use_cache=False).logits

    @torch.inference_mode()
    def generate_greedy(self, inputs_embeds: Tensor, num_tokens: int) -> list[int]:
        """Return the first `num_tokens` greedy tokens, past any eos; for comparison only."""
        output = self.decoder(inputs_embeds=inputs_embeds, use_cache=True)
        token_ids = [int(output.logits[0, -1].argmax())]
        while len(token_ids) < num_tokens:
            output = self.decoder(
                inputs_embeds=self.embed_tokens(torch.tensor([[token_ids[-1]]])),
                past_key_values=output.past_key_values,
                use_cache=True,
            )
            token_ids.append(int(output.logits[0, -1].argmax()))
        return token_ids
