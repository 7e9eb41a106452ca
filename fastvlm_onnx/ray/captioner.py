"""Captioner: a model in an actor of Ray, which answers about batches of pictures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from fastvlm_onnx.errors import FastVLMError, InputError
from fastvlm_onnx.runtime.captions.asking import NamedPicture, caption
from fastvlm_onnx.runtime.captions.prompts import PromptTemplate
from fastvlm_onnx.runtime.captions.table import caption_table
from fastvlm_onnx.runtime.loading import load

PATH, CONTENT, ERROR = "path", "bytes", "error"


class Captioner:
    """Answers the same question about each picture of a batch; for Ray Data's `map_batches`.

    The package is opened once in each actor. Its sessions have as many threads as the actor has
    CPUs (`num_cpus` of `map_batches`).
    """

    def __init__(
        self,
        package: str,
        prompt: str | PromptTemplate,
        *,
        id_column: str = PATH,
        image_column: str = CONTENT,
        batch_size: int = 4,
        load_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Open the package.

        Args:
            package: an exported folder, which every machine must have at this path, or a hub id.
            prompt: the question, or a template of it, filled with the picture's id.
            id_column: the column with a name for each picture.
            image_column: the column with the pictures: content of files, structs with such `bytes`,
                or uint8 [height, width, 3].
            batch_size: pictures that are answered at once, 1 or more. `batch_size` of `map_batches`
                should be several times as many, since pictures are read while others are answered.
            load_options: further keyword arguments of `fastvlm_onnx.load`.
            options: the keyword arguments of `FastVLM.generate_batch`.

        Raises:
            PackageError: the package is missing or damaged.
            InputError: an option cannot be used.
            ProviderError: a provider cannot be used.
        """
        self._model = load(package, **{"threads": _actor_cpus(), **(load_options or {})})
        self._prompt, self._batch_size, self._options = prompt, batch_size, options
        self._id_column, self._image_column = id_column, image_column

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> pa.Table:
        """Answer about the pictures of a batch.

        Args:
            batch: columns of the same length. A text in a column `error` says that the picture
                could not be read.

        Returns:
            The id column; strings `text`, `parsed` (JSON) and `finish_reason`; float64 `seconds`;
            string `error`. A picture that cannot be read has an error and no text.

        Raises:
            InputError: a column is missing, or the prompt cannot be used.
            ProviderError: a provider failed.
        """
        for name in (self._id_column, self._image_column):
            if name not in batch:
                raise InputError(
                    f"the batch has the columns {', '.join(batch)}; expected {name}. Name the "
                    "columns with id_column and image_column."
                )
        ids, contents = batch[self._id_column], batch[self._image_column]
        errors = batch.get(ERROR, np.full(len(ids), None))
        pictures = [
            NamedPicture(str(name), _picture(content, error))
            for name, content, error in zip(ids, contents, errors, strict=True)
        ]
        answers = caption(
            self._model, pictures, self._prompt, batch_size=self._batch_size, **self._options
        )
        table = caption_table([answer.fields() for answer in answers])
        # The ids keep their type, by which they are found again.
        return table.set_column(0, self._id_column, pa.array(ids))


def _picture(content: Any, error: Any) -> Any:
    """Return a picture in a form that the model takes, or the error in its place."""
    if isinstance(error, str):
        return FastVLMError(error)
    if isinstance(content, Mapping):  # an image as the `datasets` library stores it
        content = content.get(CONTENT)
    if content is None:
        return InputError("there is no picture; expected the content of a file.")
    if isinstance(content, np.bytes_):
        return bytes(content)
    return content


def _actor_cpus() -> int:
    """The CPUs of this actor, at least 1; 1 outside an actor."""
    if not ray.is_initialized():
        return 1
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
