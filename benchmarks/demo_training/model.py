"""The model under training: what is put behind it while it learns, and taken away to store it."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo_training.batches import GRID_SIZES, IGNORED, SLOTS, TARGET_SIZES
from demo_training.sizes import CONFIG, LANGUAGE, VISION
from fastvlm_onnx.export.verification.reference_model import (
    PROJECTOR_PREFIX,
    VISION_PREFIX,
    DepthwiseConv,
    MobileOneBlock,
    ReferenceFastVLM,
    ReparamLargeKernelConv,
)

THIRD_STAGE, FOURTH_STAGE = 4, 7  # in FastViTHD's list of layers


class ConvBN(nn.Module):
    """A convolution with the BatchNorm that is folded into it for storing."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.bn = conv, nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def folded(self) -> nn.Conv2d:
        return nn.utils.fuse_conv_bn_eval(self.conv.eval(), self.bn.eval())


def build_model(tensors: dict[str, Tensor] | None = None) -> ReferenceFastVLM:
    """A model with a BatchNorm behind each bare convolution, and residuals where they are folded.

    Args:
        tensors: a stored checkpoint to go on from; `unfold` must follow. Random weights when None.
    """
    model = ReferenceFastVLM(CONFIG)
    model.decoder.set_attn_implementation("sdpa")
    if tensors is not None:
        model.load_checkpoint(tensors)
    for module in list(model.vision_encoder.modules()):
        if isinstance(module, MobileOneBlock):
            module.reparam_conv = ConvBN(module.reparam_conv)
        elif isinstance(module, ReparamLargeKernelConv):
            module.lkb_reparam = ConvBN(module.lkb_reparam)
        elif isinstance(module, DepthwiseConv) and tensors is None:
            middle = module.reparam_conv.kernel_size[0] // 2
            with torch.no_grad():
                module.reparam_conv.weight.mul_(0.3)
                module.reparam_conv.weight[:, 0, middle, middle] += 1
                module.reparam_conv.bias.zero_()
    for name, parameter in model.vision_encoder.named_parameters():
        if "layer_scale" in name and tensors is None:
            nn.init.constant_(parameter, 0.3)
    return model


def _measuring(block: ConvBN) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        result = block.conv(x)
        variance, mean = torch.var_mean(result, (0, 2, 3), correction=0)
        block.bn.running_mean.copy_(mean)
        block.bn.running_var.copy_(variance)
        block.bn.weight.copy_((variance + block.bn.eps).sqrt())
        block.bn.bias.copy_(mean)
        return result

    return forward


@torch.no_grad()
def unfold(model: ReferenceFastVLM, pixel_values: Tensor) -> None:
    """Give every BatchNorm the statistics of these pictures, and weights that undo them.

    A stored model, loaded into the convolutions, then computes the same as before.
    """
    norms = [module for module in model.modules() if isinstance(module, ConvBN)]

    for block in norms:
        block.forward = _measuring(block)  # type: ignore[method-assign]
    model.vision_encoder.train()
    model.vision_encoder(pixel_values)
    for block in norms:
        del block.forward


def folded_tensors(model: ReferenceFastVLM) -> dict[str, Tensor]:
    """The checkpoint under Apple's names, bf16, convolutions folded, the unused head included."""
    vision = copy.deepcopy(model.vision_encoder).cpu().eval()
    for module in list(vision.modules()):
        for attribute in ("reparam_conv", "lkb_reparam"):
            inner = getattr(module, attribute, None)
            if isinstance(inner, ConvBN):
                setattr(module, attribute, inner.folded())
    tensors = {VISION_PREFIX + name: t for name, t in vision.state_dict().items()}
    # Apple's files hold the classification head too; nothing reads it.
    tensors[VISION_PREFIX + "head.proj"] = torch.zeros(VISION.hidden_size, 64)
    tensors |= {PROJECTOR_PREFIX + name: t for name, t in model.projector.state_dict().items()}
    tensors |= dict(model.decoder.state_dict())
    return {
        name: t.detach().cpu().to(torch.bfloat16 if t.is_floating_point() else t.dtype).contiguous()
        for name, t in tensors.items()
    }


class TrainingHeads(nn.Module):
    """Name what stands where, on two maps of the vision encoder and on the image tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Conv2d(VISION.widths[2], sum(GRID_SIZES), 1)
        self.fourth = nn.Conv2d(VISION.widths[3], sum(GRID_SIZES[1:]), 1)
        self.tokens = nn.Linear(LANGUAGE.hidden_size, SLOTS * sum(TARGET_SIZES))
        self.number = len(GRID_SIZES) + len(GRID_SIZES[1:]) + len(TARGET_SIZES)
        for size in {*GRID_SIZES, *TARGET_SIZES}:
            weight = torch.ones(size)
            if size in (GRID_SIZES[0], GRID_SIZES[1]):
                # Most places hold nothing; unweighted, "nothing" is all that would be learned.
                weight[0] = 0.04
            self.register_buffer(f"weight{size}", weight, persistent=False)

    def losses(
        self,
        third: Tensor,
        fourth: Tensor,
        image_features: Tensor,
        grid: Tensor,
        shapes: Tensor,
        characters: Tensor,
    ) -> Tensor:
        """Cross entropies, float32 [12].

        Of the third stage's map: character, shape, color; of the fourth's: shape, color; of the
        image tokens: shape, its color, its order and its ninth of the picture, character, its color
        and its order.
        """
        found = [
            *self.third(third).flatten(2).transpose(1, 2).flatten(0, 1).split(GRID_SIZES, -1),
            *self.fourth(fourth).flatten(2).transpose(1, 2).flatten(0, 1).split(GRID_SIZES[1:], -1),
        ]
        # The fourth map's cells are the image tokens' quarters, row by row.
        side = fourth.shape[-1]
        quarters = shapes.unflatten(1, (side // 2, side // 2)).unflatten(3, (2, 2))
        quarters = quarters.permute(0, 1, 3, 2, 4, 5).reshape(-1, shapes.shape[-1])
        wanted = [*grid.flatten(0, 2).unbind(-1), quarters[:, 0], quarters[:, 1]]
        found += (
            self.tokens(image_features)
            .flatten(0, 1)
            .unflatten(1, (SLOTS, -1))
            .flatten(0, 1)
            .split(TARGET_SIZES, -1)
        )
        wanted += [*shapes.flatten(0, 2).unbind(-1), *characters.flatten(0, 2).unbind(-1)]
        losses = [
            functional.cross_entropy(
                logits.float(),
                target,
                getattr(self, f"weight{logits.shape[-1]}"),
                ignore_index=IGNORED,
            )
            for logits, target in zip(found, wanted, strict=True)
        ]
        return torch.stack(losses).nan_to_num()


def encode_with_maps(model: ReferenceFastVLM, pixel_values: Tensor) -> tuple[Tensor, ...]:
    """Return the maps of the third and fourth stage and the image features."""
    encoder = model.vision_encoder
    x = encoder.patch_embed(pixel_values)
    maps = []
    for index, layer in enumerate(encoder.network):
        x = layer(x)
        if index in (THIRD_STAGE, FOURTH_STAGE):
            maps.append(x)
    hidden = encoder.conv_exp(x).flatten(2).transpose(1, 2)
    return (*maps, model.projector(hidden))


def language_loss(
    model: ReferenceFastVLM,
    features: Tensor,
    ids: Tensor,
    labels: Tensor,
    positions: Tensor,
    segments: Tensor,
) -> Tensor:
    """Mean cross entropy of the answers' tokens; a conversation sees the prefix and itself."""
    embeds = model.embed_tokens(ids.clamp(min=0))
    # Every image position takes the next of the picture's features.
    is_image = ids == -1
    which = (is_image.cumsum(1) - 1).clamp(min=0)[..., None].expand_as(embeds)
    embeds = torch.where(is_image[..., None], features.to(embeds.dtype).gather(1, which), embeds)
    same = (segments[:, None, :] == segments[:, :, None]) | (segments[:, None, :] == 0)
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    mask = torch.zeros(same.shape, device=ids.device).masked_fill(~(same & causal), -1e9)[:, None]
    hidden = model.decoder.model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    logits = model.decoder.lm_head(hidden[:, :-1])
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED
    )
