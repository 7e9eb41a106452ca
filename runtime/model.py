"""FastVLM: a package opened for use, from image and prompt to an answer."""

import os
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

from fastvlm_onnx.arguments import checks_arguments
from fastvlm_onnx.deprecation import renamed
from fastvlm_onnx.errors import InputError
from fastvlm_onnx.names import (
    DECODER,
    LM_HEAD,
    LM_HEAD_SCREEN,
    PREFILL,
    PROJECTOR,
    VISION_ENCODER,
)
from fastvlm_onnx.package import Manifest
from fastvlm_onnx.runtime.answering.answer import ModelDescription, StageTimes
from fastvlm_onnx.runtime.answering.components import Components
from fastvlm_onnx.runtime.answering.results import Generation, Piece
from fastvlm_onnx.runtime.answering.see import SeenImage, see_image, start_from_seen
from fastvlm_onnx.runtime.answering.stream import final_generation, stream_answer
from fastvlm_onnx.runtime.engine.decoder import Decoder
from fastvlm_onnx.runtime.engine.language_model import LanguageModel
from fastvlm_onnx.runtime.engine.lm_head import ScreenedHead
from fastvlm_onnx.runtime.engine.options import GenerationConfig, GenerationOptions
from fastvlm_onnx.runtime.engine.prefix_cache import PrefixCache
from fastvlm_onnx.runtime.engine.token_embedding import TokenEmbedding
from fastvlm_onnx.runtime.ort.session import GraphRunner, GraphSession
from fastvlm_onnx.runtime.structured.constraints import Constraints
from fastvlm_onnx.runtime.text.prompt import PromptPart, PromptTemplate, question, room_for_answer
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.image_encoder import (
    ImageEncoder,
    ImageFeatures,
    ImageInput,
    PixelValues,
    images_of,
)

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.answering.chat import Chat

# Features of about sixty images of 1024 pixels for the 0.5B.
IMAGE_CACHE_BYTES: Final = 64_000_000
# Keys and values of 10,000 positions, or thirty images of 1024 pixels, for the 0.5B.
PREFIX_CACHE_BYTES: Final = 256_000_000


class FastVLM:
    """A model ready to answer; made by `load`.

    Any number of threads may ask it at once, since each answer has its own keys and values. A model
    stays with the process that loaded it.

    Attributes:
        manifest: the package's description of itself.
        precision: the variant that was opened.
        image_size: side of the square input in pixels.
        threads: intra-op threads of each graph; None where the machine's cores decide.
        sessions: the open graphs, by name.
        providers: ONNX Runtime's name of the provider of each graph.
        load_seconds: time that opening the package took.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        precision: str,
        image_size: int,
        sessions: Mapping[str, GraphRunner],
        tokenizer: TextTokenizer,
        threads: int | None,
        *,
        image_cache_bytes: int,
        prefix_cache_bytes: int,
    ) -> None:
        """Join the open graphs of a package.

        Args:
            sessions: by graph; PREFILL, LM_HEAD and LM_HEAD_SCREEN only where the variant has
                graphs of its own for them.
        """
        self.manifest, self.precision, self.image_size = manifest, precision, image_size
        self.threads, self.sessions = threads, dict(sessions)
        self.providers = {graph: session.choice.ep for graph, session in sessions.items()}
        self.load_seconds = 0.0
        self._folder, self._process_id = folder, os.getpid()
        decoder, prefill = sessions[DECODER], sessions.get(PREFILL)
        # Only the vision encoder may be a session that opens for each run.
        assert isinstance(decoder, GraphSession)
        assert prefill is None or isinstance(prefill, GraphSession)
        sizes = manifest.decoder
        lm_head = None
        if LM_HEAD_SCREEN in sessions:
            lm_head = ScreenedHead(sessions[LM_HEAD], sessions[LM_HEAD_SCREEN], sizes.vocab_size)
        variant = manifest.variants[precision]
        embed_tokens = folder / variant.embed_tokens
        self._components: Components | None = Components(
            PromptTemplate(tokenizer, manifest.prompt),
            ImageEncoder(
                sessions[VISION_ENCODER],
                sessions[PROJECTOR],
                image_size=image_size,
                num_image_tokens=self.num_image_tokens,
                hidden_size=sizes.hidden_size,
                cache_bytes=image_cache_bytes,
            ),
            LanguageModel(
                Decoder(decoder, sizes, prefill, lm_head, variant.second_pass),
                TokenEmbedding(embed_tokens, sizes),
                sizes,
            ),
            Constraints(tokenizer, sizes.vocab_size, sizes.eos_token_ids),
            PrefixCache(prefix_cache_bytes),
            lambda: ModelDescription(
                manifest.source.name, precision, self.providers, self.load_seconds
            ),
        )

    # --- parts, each usable alone ------------------------------------------------------------

    @property
    def num_image_tokens(self) -> int:
        """Positions that an image takes in the context."""
        return (self.image_size // self.manifest.image.patch_size) ** 2

    @property
    def image_encoder(self) -> ImageEncoder:
        """The vision encoder and the projector."""
        return self.components().image_encoder

    @property
    def language_model(self) -> LanguageModel:
        """The decoder with its token embeddings; token ids in, logits out."""
        return self.components().language_model

    @property
    def template(self) -> PromptTemplate:
        """The conversation template with the tokenizer; text in, token ids out."""
        return self.components().template

    def components(self) -> Components:
        """All parts.

        Raises:
            InputError: the model is closed, or was loaded before this process forked.
        """
        if self._components is None:
            raise InputError(f"the model of {self._folder} is closed; load it again.")
        if os.getpid() != self._process_id:
            # ONNX Runtime's threads stay in the parent, so a run here would wait for ever.
            raise InputError(
                f"the model of {self._folder} was loaded before this process forked; load it here "
                "too, or start processes by spawning."
            )
        return self._components

    # --- asking ------------------------------------------------------------------------------

    @checks_arguments
    def encode_image(self, image: ImageInput, *, orient: bool = False) -> ImageFeatures:
        """Encode an image once, to ask about it often.

        Args:
            image: a path, bytes, a binary file, a Pillow image or uint8 [height, width, 3].
            orient: turn the image as its EXIF data say.

        Returns:
            Features that every way to ask takes in the image's place. They are good for this
            model's weights, variant and image size.

        Raises:
            InputError: the image cannot be read, or the model is closed.
            ProviderError: a provider failed.
        """
        encoder = self.image_encoder
        return encoder.encode(encoder.read(image, orient=orient), use_cache=False)

    @checks_arguments
    def see(self, image: ImageInput, *, orient: bool = False) -> SeenImage:
        """Encode and prefill an image before the question comes.

        A question about the image then starts at its own words, if the image comes first in it, as
        it does in `generate`. Keys and values are kept in the model's prefix cache. Where they had
        to make room for others, or text precedes the image, the features are used.

        Args:
            image: as `encode_image` takes it.
            orient: turn the image as its EXIF data say.

        Returns:
            The image, for any way to ask.

        Raises:
            InputError: the image cannot be read, or the model is closed.
            ProviderError: a provider failed.
        """
        encoder = self.image_encoder
        features = encoder.encode(encoder.read(image, orient=orient))
        return see_image(self.components(), features)

    @renamed(picture="image")
    def generate(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """Answer a question about an image.

        Args:
            image: as `encode_image` takes it, or its features; a list for several images, which
                come before the prompt in this order; None for a question without an image.
            prompt: the user's text.
            options: see `GenerationOptions`.

        Raises:
            InputError: an image, the prompt or an option cannot be used, or the model is closed.
            PromptTooLongError: the prompt leaves no room for an answer.
            ProviderError: a provider failed; the model stays usable.
        """
        return final_generation(self.stream(image, prompt, **options))

    @renamed(picture="image")
    def stream(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str,
        **options: Unpack[GenerationOptions],
    ) -> Generator[Piece, None, None]:
        """`generate`, piece by piece: the pieces' texts joined are the answer's text.

        Input is checked at the call, before the first piece is asked for. The iterator may be
        closed at any point, and then holds no memory.
        """
        called = time.perf_counter()
        components = self.components()
        config = GenerationConfig(**options)
        components.constraints.check(config)
        images = images_of(image)
        parts = components.template.prompt(question(prompt, len(images)))
        context = components.language_model.sizes.context_length
        room = room_for_answer(context, parts, self.num_image_tokens)
        read = [components.image_encoder.read(one, orient=config.orient) for one in images]
        return self._answer(parts, read, config, min(config.max_new_tokens, room), called)

    def _answer(
        self,
        parts: list[PromptPart],
        read: list[PixelValues | ImageFeatures],
        config: GenerationConfig,
        max_new_tokens: int,
        called: float,
    ) -> Generator[Piece, None, None]:
        components = self.components()  # the model may have been closed since the call
        preprocessed = time.perf_counter()
        features = [components.image_encoder.encode(one, use_cache=False) for one in read]
        encoded = time.perf_counter()
        times = StageTimes(called, preprocessed - called, encoded - preprocessed, encoded)
        inputs_embeds = components.embed(parts, features)
        cache = components.language_model.new_cache(inputs_embeds.shape[1] + max_new_tokens)
        answer = components.begin_answer(config, max_new_tokens, times)
        answer.cached_tokens = start_from_seen(components, parts, features, cache)
        yield from stream_answer(components, inputs_embeds[:, cache.length :], cache, answer)

    @checks_arguments
    def chat(self, *, drop_oldest: bool = False) -> "Chat":
        """Begin a conversation that keeps its keys and values from turn to turn.

        Args:
            drop_oldest: drop the oldest turns where the context is full, at the cost of another
                prefill; a full context is a PromptTooLongError when False.
        """
        from fastvlm_onnx.runtime.answering.chat import Chat

        return Chat(self.components, drop_oldest=drop_oldest)

    @renamed(pictures="images")
    @checks_arguments
    def generate_batch(
        self,
        images: Sequence[ImageInput],
        prompts: str | Sequence[str],
        **options: Unpack[GenerationOptions],
    ) -> list[Generation]:
        """Answer several questions at once, in less time than in turn.

        Args:
            images: an image, or its features, for each question.
            prompts: a prompt for each image, or one prompt for all.
            options: see `GenerationOptions`; they hold for each answer. With a seed each answer is
                drawn as it would be alone.

        Raises:
            InputError: the list is empty, the lists differ in length, or as `generate`.
            PromptTooLongError: a prompt leaves no room for an answer.
            ProviderError: a provider failed; the model stays usable.
        """
        from fastvlm_onnx.runtime.answering.batch import answer_batch

        return answer_batch(self.components(), images, prompts, GenerationConfig(**options))

    # --- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Release the sessions. Answers already running in other threads finish normally."""
        components, self._components = self._components, None
        self.sessions.clear()
        if components is not None:
            components.image_encoder.forget()
            components.prefixes.clear()

    def __enter__(self) -> "FastVLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a FastVLM cannot be pickled; load {self._folder} in the process that needs it."
        )
