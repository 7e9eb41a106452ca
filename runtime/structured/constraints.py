"""Constraints of answers: llguidance's matcher over the tokens of one model."""

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.runtime.engine.constraint import TokenConstraint
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.structured.grammar import Grammar, grammar_of
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

CACHED_GRAMMARS: Final = 16


class Constraints:
    """Makes the constraints of a model's answers. Any number of threads may use it.

    llguidance's view of the vocabulary is built with the first structured answer (about 1 s for
    Qwen2's) and kept. So are the last grammars.
    """

    def __init__(
        self, tokenizer: TextTokenizer, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        """Take the vocabulary of a model.

        Args:
            vocab_size: logits of a token. It may be larger than the tokenizer's vocabulary.
            eos_token_ids: the model's own end tokens.
        """
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._compiled = lru_cache(CACHED_GRAMMARS)(self._compile)

    def check(self, config: GenerationConfig) -> None:
        """Refuse options whose grammar cannot be used, before an answer costs anything.

        Raises:
            InputError: the schema, the regular expression or the choices cannot be used, or
                llguidance is not installed.
        """
        self.new_constraint(config)

    def new_constraint(self, config: GenerationConfig) -> TokenConstraint | None:
        """The constraint of a new answer; None for an answer in free text.

        Raises:
            InputError: as `check`.
        """
        grammar = grammar_of(config)
        if grammar is None:
            return None
        with self._lock:
            matcher = self._compiled(grammar).deep_copy()
        return MatcherConstraint(matcher, grammar.option, self._vocab_size)

    def _compile(self, grammar: Grammar) -> "LLMatcher":
        from llguidance import LLMatcher

        if self._vocabulary is None:
            self._vocabulary = build_vocabulary(self._tokenizer, self._eos_token_ids)
        matcher = LLMatcher(self._vocabulary, grammar.text, log_level=0, limits=_limits())
        # An error of the grammar shows at once, or with the first mask.
        MatcherConstraint(matcher, grammar.option, self._vocab_size).allowed_tokens()
        return matcher


class MatcherConstraint:
    """A `TokenConstraint` that follows an answer with llguidance's matcher."""

    def __init__(self, matcher: "LLMatcher", option: str, vocab_size: int) -> None:
        """Take a matcher that has consumed no token.

        Args:
            option: the option that the answer is held to, for messages.
        """
        self._matcher, self._option, self._vocab_size = matcher, option, vocab_size
        self._check()

    def allowed_tokens(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        # Logits of no token of the tokenizer follow; their bits are 0.
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
        if not allowed.any():
            raise InputError(
                f"{self._option} asks for characters that no token of the model has; "
                "ask for others."
            )
        return allowed

    def consume(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        self._check()

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if error := self._matcher.get_error():
            raise InputError(f"{self._option} cannot be used: {_reason(error)}; change it.")


class Vocabulary:
    """A tokenizer in the form that llguidance takes.

    The bytes of a token are those that the answer's text gets.

    Attributes:
        eos_token_id: the first of the model's end tokens.
        bos_token_id: None, since no token begins a text.
        tokens: the bytes of each token of the tokenizer.
        special_token_ids: tokens that are no text.
    """

    def __init__(self, tokenizer: TextTokenizer, eos_token_ids: Sequence[int]) -> None:
        self.eos_token_id = eos_token_ids[0]
        self.bos_token_id = None
        self.tokens = [tokenizer.bytes_of(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = [*tokenizer.special_token_ids]
        self._tokenizer = tokenizer
        self._token_of = {token: i for i, token in enumerate(self.tokens) if len(token) == 1}

    def __call__(self, text: str) -> list[int]:
        """Token ids of exactly this text.

        `TextTokenizer.encode` composes characters and accents, and a text that changes by that is
        given byte by byte.
        """
        token_ids = self._tokenizer.encode(text)
        if self._tokenizer.decode(token_ids) == text:
            return token_ids
        return [self._token_of[bytes([byte])] for byte in text.encode()]


def build_vocabulary(tokenizer: TextTokenizer, eos_token_ids: Sequence[int]) -> "LLTokenizer":
    """llguidance's view of a model's vocabulary.

    Raises:
        InputError: the package names no end token.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    if not eos_token_ids:
        raise InputError("the package names no end token; its answers cannot be structured.")
    wrapper = TokenizerWrapper(Vocabulary(tokenizer, eos_token_ids))
    return LLTokenizer(wrapper, eos_token=list(eos_token_ids))


def _limits() -> "LLParserLimits":
    """The work that a grammar may cause: about a tenth of llguidance's own limits.

    The worst regular expressions that were tried are refused after 0.06 s of one step instead of
    2 s. Schemas of a thousand fields and thousands of values stay inside.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=100_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _reason(error: str) -> str:
    """The line of llguidance's message that says the cause."""
    first, *others = error.splitlines()
    marked = [line.removeprefix("error: ") for line in others if line.startswith("error: ")]
    # "at 1(8): invalid regex "..." (in regex): the cause"
    return (marked[0] if marked else first.rpartition("(in regex): ")[2])[:200]
