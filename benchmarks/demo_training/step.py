"""One step of the training. On an NVIDIA card it is recorded once and replayed as a CUDA graph.

The model is so small that launching its kernels one by one takes longer than running them.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from demo_training.model import TrainingHeads, encode_with_maps, language_loss
from fastvlm_onnx.export.verification.reference_model import ReferenceFastVLM

EAGER_STEPS = 5  # before recording: libraries choose their kernels, the optimizer makes its state


class TrainingStep:
    """Losses, gradients, optimizer and moving average.

    Attributes:
        average: the model with the moving average of its weights, which is what is stored.
        sums: the losses added up since the caller set them to zero: of the answers, of the heads.
    """

    def __init__(
        self,
        model: ReferenceFastVLM,
        heads: TrainingHeads,
        *,
        average: float,
        bf16: bool,
        is_compiled: bool,
    ) -> None:
        self.model, self.heads = model, heads
        self.average = copy.deepcopy(model)
        self._device = next(model.parameters()).device
        self._on_card = self._device.type == "cuda"
        self._bf16 = bf16
        self._losses: Callable[..., tuple[Tensor, Tensor]] = step_losses
        if is_compiled:
            self._losses = torch.compile(step_losses, dynamic=False)
        self._parameters = [*model.parameters(), *heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self._parameters if p.ndim > 1], "weight_decay": 0.05},
                {"params": [p for p in self._parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=torch.tensor(0.0, device=self._device),
            betas=(0.9, 0.98),
            fused=True,
            capturable=self._on_card,
        )
        self._move_average = get_ema_multi_avg_fn(average)
        self._text_weight = torch.ones((), device=self._device)
        self.sums = torch.zeros(1 + heads.number, device=self._device)
        self._steps = 0
        self._graph: Any = None
        self._batch: list[Tensor] = []
        self._stream = torch.cuda.Stream() if self._on_card else None

    def __call__(self, batch: list[Tensor], learning_rate: float, text_weight: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(learning_rate)
        self._text_weight.fill_(text_weight)
        self._steps += 1
        if not self._on_card:
            self._run(batch)
        elif self._steps <= EAGER_STEPS:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._run(batch)
            torch.cuda.current_stream().wait_stream(self._stream)
        else:
            if self._graph is None:
                self._record(batch)
            for held, part in zip(self._batch, batch, strict=True):
                held.copy_(part)
            self._graph.replay()

    def _record(self, batch: list[Tensor]) -> None:
        self._batch = [part.clone() for part in batch]
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, such as the loader's that pins memory, may call CUDA meanwhile.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            self._run(self._batch)

    def _run(self, batch: list[Tensor]) -> None:
        with torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._bf16, cache_enabled=False
        ):
            text_loss, head_losses = self._losses(self.model, self.heads, *batch)
        (self._text_weight * text_loss + head_losses.sum()).backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._move_average(_floats(self.average), _floats(self.model), None)
        self.sums += torch.cat([text_loss.detach()[None], head_losses.detach()])

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


def _floats(model: nn.Module) -> list[Tensor]:
    """Weights and BatchNorm statistics."""
    return [t for t in model.state_dict().values() if t.is_floating_point()]


def step_losses(
    model: ReferenceFastVLM, heads: TrainingHeads, *batch: Tensor
) -> tuple[Tensor, Tensor]:
    """The language model's loss, and those of the training heads."""
    pixels, ids, labels, positions, segments, *targets = batch
    third, fourth, features = encode_with_maps(model, pixels.float() / 255)
    head_losses = heads.losses(third, fourth, features, *targets)
    return language_loss(model, features, ids, labels, positions, segments), head_losses
