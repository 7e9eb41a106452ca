"""A prompt on its way into a batch."""

from fastvlm_onnx.runtime.answering.answer import Answer
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.engine.language_model import LanguageModel
from fastvlm_onnx.runtime.engine.prefix_cache import PrefixCache, PromptKey


class Prefill:
    """Runs a prompt in parts, so that other answers can be decoded between two parts.

    Attributes:
        answer: the answer to the prompt; it has its first token at the end.
        key: the prompt's key in the prefix cache; empty where it does not use the cache.
        cache: keys and values of the prompt.
        positions: positions of the prompt and of the longest answer.
    """

    def __init__(
        self,
        model: LanguageModel,
        inputs_embeds: FloatArray,
        answer: Answer,
        max_new_tokens: int,
        key: PromptKey = (),
        prefixes: PrefixCache | None = None,
    ) -> None:
        """Begin with what the prefix cache knows of the prompt; nothing is run yet.

        Args:
            inputs_embeds: the whole prompt, float32 [1, sequence_length, hidden_size].
            max_new_tokens: the largest number of tokens that the answer may get.
            prefixes: keys and values of earlier prompts of this model; None for no cache.

        Raises:
            ProviderError: there is not enough memory.
        """
        self._model, self._inputs_embeds = model, inputs_embeds
        self._prefixes = prefixes if key else None
        self.answer, self.key = answer, key
        self.positions = inputs_embeds.shape[1] + max_new_tokens
        self.cache = model.new_cache(inputs_embeds.shape[1])
        if self._prefixes is not None:
            answer.cached_tokens = model.start_from_prefix(self.cache, key, self._prefixes)

    def advance(self, max_positions: int | None = None) -> bool:
        """Run the next part of the prompt; after the last part, sample the first token.

        Args:
            max_positions: the most positions to run; all that are left when None.

        Returns:
            The prompt has been run to its end.

        Raises:
            ProviderError: the provider failed.
        """
        left = self._inputs_embeds[:, self.cache.length :]
        if max_positions is not None and left.shape[1] > max_positions:
            self._model.prefill_part(left[:, :max_positions], self.cache)
            return False
        logits = self._model.prefill(left, self.cache, is_greedy=self.answer.is_greedy)
        if self._prefixes is not None:
            self._prefixes.add(self.key, self.cache.read)
        self.answer.accept_or_fail(logits)
        return True
