"""The open model with its scheduler, and its description for clients."""

import time
from dataclasses import dataclass, field
from typing import Any

from fastvlm_onnx.runtime.model import FastVLM
from fastvlm_onnx.runtime.serving.scheduler import Scheduler
from fastvlm_onnx.server.errors import ApiError, bad_request
from fastvlm_onnx.version import __version__


@dataclass(frozen=True)
class Service:
    """A model that answers.

    Attributes:
        name: the id that /v1/models lists.
        created: Unix time of the start.
    """

    model: FastVLM
    scheduler: Scheduler
    name: str
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def fingerprint(self) -> str:
        """Changes where equal requests with a seed may get other answers."""
        return f"fastvlm-onnx-{__version__}-{self.model.precision}"

    def card(self) -> dict[str, Any]:
        """The model as /v1/models shows it: OpenAI's fields, and the facts of this model."""
        model = self.model
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "fastvlm-onnx",
            "precision": model.precision,
            "image_size": model.image_size,
            "num_image_tokens": model.num_image_tokens,
            "context_length": model.language_model.sizes.context_length,
            "providers": dict(model.providers),
            "version": __version__,
        }

    def check_model(self, name: str | None) -> None:
        """Refuse a request for another model.

        Raises:
            ApiError: the name is not this model's.
        """
        if name is not None and name != self.name:
            raise ApiError(
                404,
                f"the model {name[:100]!r} is not here; this server has {self.name!r}.",
                kind="not_found_error",
                param="model",
                code="model_not_found",
            )

    def check_image_size(self, image_size: int | None) -> None:
        """Refuse an image size that the model was not opened with.

        Raises:
            ApiError: the size is another.
        """
        if image_size is not None and image_size != self.model.image_size:
            raise bad_request(
                f"image_size is {image_size}; this server reads images at "
                f"{self.model.image_size} pixels.",
                "image_size",
                "invalid_value",
            )
