"""FastVLM: a package opened for use, from picture and words to an answer."""

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.names import (
    DECODER,
    IMAGE_FEATURES,
    IMAGE_HIDDEN_STATES,
    PIXEL_VALUES,
    PREFILL,
    PROJECTOR,
    TOKENIZER_FILE,
    VISION_ENCODER,
)
from fastvlm_onnx.package import Manifest
from fastvlm_onnx.runtime.answering.results import Generation, Piece
from fastvlm_onnx.runtime.answering.stream import Marks, answer, last_of
from fastvlm_onnx.runtime.engine.decoding import decode_one_token, prefill
from fastvlm_onnx.runtime.engine.options import Options, Settings
from fastvlm_onnx.runtime.engine.token_embedding import TokenEmbedding
from fastvlm_onnx.runtime.ort.coreml import check_features, with_model_cache
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import COREML, CPU
from fastvlm_onnx.runtime.ort.session import DecoderSession, GraphSession, LazySession
from fastvlm_onnx.runtime.text.prompt import PromptIds, room_for_answer, tokenize_prompt
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.feature_cache import FeatureCache
from fastvlm_onnx.runtime.vision.image import Picture, preprocess, read_picture

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.answering.chat import Chat

FloatArray = NDArray[np.float32]

# Some sixty pictures of 1024 pixels for the 0.5B.
IMAGE_CACHE_BYTES: Final = 64_000_000


class FastVLM:
    """A model ready to answer; made by `load`.

    Any number of threads may ask it at once: each answer has keys and values of its own, and
    nothing else of it changes. It stays with the process that loaded it.

    Attributes:
        sessions: the open graphs, by name.
        providers: ONNX Runtime's name of the provider of each.
        load_seconds: what opening it took.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        precision: str,
        image_size: int,
        choices: Mapping[str, ProviderChoice],
        threads: int | None,
        *,
        image_cache_bytes: int,
        lazy_vision: bool,
        records_placement: bool,
    ) -> None:
        providers = {graph: choice.name for graph, choice in choices.items()}
        variant = manifest.variants[precision].on_providers(providers)
        self.manifest, self.precision, self.image_size = manifest, precision, image_size
        self._folder = folder
        self._tokenizer = TextTokenizer(folder / TOKENIZER_FILE)
        self._embed_tokens = TokenEmbedding(folder / variant.embed_tokens, manifest.decoder)
        graphs = {
            VISION_ENCODER: variant.vision_encoder[str(image_size)],
            PROJECTOR: variant.projector,
            DECODER: variant.decoder,
        }
        if variant.prefill != variant.decoder:
            graphs[PREFILL] = variant.prefill
        self.threads = threads
        self.sessions = sessions = {
            graph: (LazySession if lazy_vision and graph == VISION_ENCODER else GraphSession)(
                folder / file,
                with_model_cache(choices[graph], manifest.files[file].sha256),
                threads,
                has_int8_products=manifest.graphs[file].int8_products,
                records_placement=records_placement,
            )
            for graph, file in graphs.items()
        }
        self.providers = {graph: session.choice.ep for graph, session in sessions.items()}
        self._vision_encoder, self._projector = sessions[VISION_ENCODER], sessions[PROJECTOR]
        self._decoder = DecoderSession(sessions[DECODER], manifest.decoder, sessions.get(PREFILL))
        self._features = FeatureCache(image_cache_bytes)
        self.load_seconds = 0.0
        self._process_id, self._is_closed = os.getpid(), False
        if COREML in (self.providers[VISION_ENCODER], self.providers[PROJECTOR]):
            self._check_coreml(manifest.files[graphs[VISION_ENCODER]].sha256)

    def _check_coreml(self, sha256: str) -> None:
        """Raise ProviderError unless CoreML's image features are the CPU's."""

        def encode_on_cpu(pixel_values: FloatArray) -> FloatArray:
            vision_encoder, projector = (
                GraphSession(session.path, ProviderChoice(CPU), self.threads)
                for session in (self._vision_encoder, self._projector)
            )
            hidden = vision_encoder.run([IMAGE_HIDDEN_STATES], {PIXEL_VALUES: pixel_values})[0]
            return projector.run([IMAGE_FEATURES], {IMAGE_HIDDEN_STATES: hidden})[0]

        check_features(sha256, self.image_size, self.encode_image, encode_on_cpu)

    @property
    def num_image_tokens(self) -> int:
        """Positions that a picture takes in the context."""
        return (self.image_size // self.manifest.image.patch_size) ** 2

    # --- stages ----------------------------------------------------------------------------------

    def encode_image(self, image: Picture | FloatArray, *, orient: bool = False) -> FloatArray:
        """A picture as the decoder sees it; every way to ask takes it in the picture's place.

        Args:
            image: a picture as `generate` takes it, or pixel_values float32 [B, 3, S, S] with S the
                model's image size.
            orient: turn the picture as its EXIF data say.

        Returns:
            image_features, float32 [B, num_image_tokens, hidden_size]; good for this model's
            weights, image size and precision.

        Raises:
            InputError: the picture cannot be used.
        """
        self._check_usable()
        pixel_values = _float32(image)
        if pixel_values is None:
            picture = read_picture(cast("Picture", image), orient=orient)
            pixel_values = preprocess(picture, self.image_size)
        return self.run_projector(self.run_vision_encoder(pixel_values))

    def run_vision_encoder(self, pixel_values: FloatArray) -> FloatArray:
        """pixel_values [B, 3, S, S] -> image_hidden_states [B, num_image_tokens, channels]."""
        return self._vision_encoder.run([IMAGE_HIDDEN_STATES], {PIXEL_VALUES: pixel_values})[0]

    def run_projector(self, image_hidden_states: FloatArray) -> FloatArray:
        """image_hidden_states -> image_features [B, num_image_tokens, hidden_size]."""
        return self._projector.run([IMAGE_FEATURES], {IMAGE_HIDDEN_STATES: image_hidden_states})[0]

    def embed_prompt(self, prompt_ids: PromptIds, image_features: FloatArray) -> FloatArray:
        """The decoder's input: embedded tokens with one image's rows in place.

        Args:
            image_features: float32 [1, num_image_tokens, hidden_size].

        Returns:
            inputs_embeds, float32 [1, sequence_length, hidden_size].
        """
        return np.concatenate(
            [
                self._embed_tokens(prompt_ids.before_image),
                image_features[0],
                self._embed_tokens(prompt_ids.after_image),
            ]
        )[None]

    def logits_along(
        self, inputs_embeds: FloatArray, token_ids: Sequence[int]
    ) -> Iterator[FloatArray]:
        """Logits at each step of an answer that is given rather than chosen.

        Yields:
            float32 [vocab_size] before each of `token_ids`; overwritten by the next.
        """
        cache = self._decoder.new_cache(inputs_embeds.shape[1] + len(token_ids))
        yield prefill(self._decoder, inputs_embeds, cache)
        for token_id in token_ids[:-1]:
            yield decode_one_token(self._decoder, self._embed_tokens, token_id, cache)

    # --- asking ----------------------------------------------------------------------------------

    def generate(
        self, picture: Picture | FloatArray, prompt: str, **options: Unpack[Options]
    ) -> Generation:
        """Answer a question about a picture.

        Args:
            picture: a path, bytes, a binary file, a Pillow image, uint8 [H, W, 3], or what
                `encode_image` gave.
            options: see `Options`.

        Raises:
            InputError: the picture, the prompt or an option cannot be used, or the model is closed.
            PromptTooLongError: the prompt does not fit in the context.
            ProviderError: a provider failed, of memory for one; the model stays usable.
        """
        return last_of(self.stream(picture, prompt, **options))

    def stream(
        self, picture: Picture | FloatArray, prompt: str, **options: Unpack[Options]
    ) -> Generator[Piece, None, None]:
        """`generate`, piece by piece: the pieces' texts joined are the answer's text.

        What can be refused is refused at the call, before the first piece is asked for. The
        iterator may be closed at any point, and holds nothing then.
        """
        began = time.perf_counter()
        self._check_usable()
        settings = Settings(**options)
        prompt_ids = tokenize_prompt(self._tokenizer, self.manifest.prompt, prompt)
        context = self.manifest.decoder.context_length
        room = room_for_answer(context, len(prompt_ids), self.num_image_tokens)
        prepared = self.prepare(picture, settings.orient)
        return self._answer(prepared, prompt_ids, settings, room, began)

    def _answer(
        self,
        prepared: FloatArray,
        prompt_ids: PromptIds,
        settings: Settings,
        room: int,
        began: float,
    ) -> Generator[Piece, None, None]:
        self._check_usable()  # it may have been closed since the call
        preprocessed = time.perf_counter()
        features = self.features_of(prepared, is_cached=False)
        marks = Marks(began, preprocessed, time.perf_counter())
        inputs_embeds = self.embed_prompt(prompt_ids, features)
        max_new_tokens = min(settings.max_new_tokens, room)
        cache = self._decoder.new_cache(inputs_embeds.shape[1] + max_new_tokens)
        yield from answer(self, inputs_embeds, cache, settings, max_new_tokens, marks, [])

    def chat(self, *, drop_oldest: bool = False) -> "Chat":
        """A conversation, whose keys and values are kept from turn to turn.

        Args:
            drop_oldest: where the context is full, go on without the oldest turns, at the cost of
                another prefill; a PromptTooLongError when False.
        """
        from fastvlm_onnx.runtime.answering.chat import Chat

        self._check_usable()
        return Chat(self, drop_oldest=drop_oldest)

    def generate_batch(
        self,
        pictures: Sequence[Picture | FloatArray],
        prompts: str | Sequence[str],
        **options: Unpack[Options],
    ) -> list[Generation]:
        """Answer several questions at once, which takes less time than one after the other.

        Args:
            pictures: one for each question; what `encode_image` gave is taken too.
            prompts: one for each picture, or one for all.
            options: see `Options`; for each answer by itself. A seed draws what it would draw for
                each answer alone.

        Raises:
            InputError: no pictures, lists of unequal length, or as `generate`.
            PromptTooLongError, ProviderError: as `generate`.
        """
        from fastvlm_onnx.runtime.answering.batch import answer_batch

        self._check_usable()
        return answer_batch(self, pictures, prompts, Settings(**options))

    # --- pictures --------------------------------------------------------------------------------

    def prepare(self, picture: Picture | FloatArray, orient: bool) -> FloatArray:
        """What `features_of` takes: pixel_values of a picture, or its features as they are."""
        features = _float32(picture)
        if features is None:
            read = read_picture(cast("Picture", picture), orient=orient)
            return preprocess(read, self.image_size)
        expected = (1, self.num_image_tokens, self.manifest.decoder.hidden_size)
        if features.shape != expected:
            raise InputError(
                f"image features are {list(features.shape)}, expected {list(expected)}; encode the "
                "picture with this model, at this image size."
            )
        return features

    def features_of(self, prepared: FloatArray, *, is_cached: bool) -> FloatArray:
        """Image features [1, num_image_tokens, hidden_size] of what `prepare` gave."""
        if prepared.ndim == 3:
            return prepared
        if not is_cached:
            return self.encode_image(prepared)
        return self._features.get(prepared, self.encode_image)

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the graphs; answers that are under way in other threads come to their end."""
        self._is_closed = True
        self.sessions.clear()
        self._features.clear()
        for name in ("_vision_encoder", "_projector", "_decoder", "_embed_tokens"):
            self.__dict__.pop(name, None)

    def __enter__(self) -> "FastVLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a FastVLM cannot be pickled; load {self._folder} in the process that needs it."
        )

    def _check_usable(self) -> None:
        if self._is_closed:
            raise InputError(f"the model of {self._folder} is closed; load it again.")
        if os.getpid() != self._process_id:
            # ONNX Runtime's threads did not come along: a run would wait for them forever.
            raise InputError(
                f"the model of {self._folder} was loaded before this process forked; load it here "
                "too, or start processes by spawning."
            )


def _float32(image: object) -> FloatArray | None:
    """What is no picture but made of one: pixel_values or image features."""
    is_one = isinstance(image, np.ndarray) and image.dtype == np.float32
    return cast("FloatArray", image) if is_one else None
