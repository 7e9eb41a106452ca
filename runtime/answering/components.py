"""The parts of an open model that every way to ask needs."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from fastvlm_onnx.runtime.answering.answer import Answer, ModelDescription, StageTimes
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.engine.language_model import LanguageModel
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.engine.prefix_cache import PrefixCache
from fastvlm_onnx.runtime.structured.constraints import Constraints
from fastvlm_onnx.runtime.text.prompt import ImagePlace, PromptPart, PromptTemplate
from fastvlm_onnx.runtime.vision.image_encoder import ImageEncoder, ImageFeatures


@dataclass(frozen=True)
class Components:
    """An image encoder, a language model, and the template that joins them.

    Attributes:
        constraints: makes the constraints of structured answers.
        prefixes: keys and values of pictures that were seen and of prompts that a scheduler ran.
        describe: returns the facts that every answer repeats.
    """

    template: PromptTemplate
    image_encoder: ImageEncoder
    language_model: LanguageModel
    constraints: Constraints
    prefixes: PrefixCache
    describe: Callable[[], ModelDescription]

    def embed(self, parts: Sequence[PromptPart], images: Sequence[ImageFeatures]) -> FloatArray:
        """Embed a prompt with its images' features in place.

        Args:
            images: the features that each ImagePlace numbers.

        Returns:
            inputs_embeds, float32 [1, sequence_length, hidden_size].
        """
        return self.language_model.embed(
            [images[p.index].array[0] if isinstance(p, ImagePlace) else p for p in parts]
        )

    def key(self, parts: Sequence[PromptPart], images: Sequence[ImageFeatures]) -> list[Hashable]:
        """The prompt's key in the prefix cache, a value for each position.

        Args:
            images: the features that each ImagePlace numbers.
        """
        key: list[Hashable] = []
        for part in parts:
            if isinstance(part, ImagePlace):
                digest = images[part.index].digest
                key += [(digest, row) for row in range(self.image_encoder.num_image_tokens)]
            else:
                key += part
        return key

    def begin_answer(
        self, config: GenerationConfig, max_new_tokens: int, times: StageTimes
    ) -> Answer:
        """A new answer of at most `max_new_tokens`.

        Raises:
            InputError: the options ask for a structure that cannot be used.
        """
        return Answer(
            self.template.tokenizer,
            config,
            self.language_model.sizes.eos_token_ids,
            max_new_tokens,
            times,
            self.constraints.new_constraint(config),
        )
