"""FastVLM: a package opened for use, from picture and words to an answer."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
from fastvlm_onnx.package import Manifest, check_files, check_hashes, check_sizes, read_manifest
from fastvlm_onnx.runtime.coreml import check_features, with_model_cache
from fastvlm_onnx.runtime.decoding import decode, decode_one_token, prefill
from fastvlm_onnx.runtime.embedding import TokenEmbedding
from fastvlm_onnx.runtime.generation import Generation, Piece, Timings
from fastvlm_onnx.runtime.image import Picture, preprocess, read_picture
from fastvlm_onnx.runtime.prompt import PromptIds, room_for_answer, tokenize_prompt
from fastvlm_onnx.runtime.providers import (
    COREML,
    CPU,
    PROVIDERS,
    Choice,
    Options,
    Providers,
    parse,
    plan,
    wanted_precisions,
)
from fastvlm_onnx.runtime.sampling import Sampler, Sampling
from fastvlm_onnx.runtime.session import DecoderSession, GraphSession
from fastvlm_onnx.runtime.tokenizer import StrippedStream, TextStream, TextTokenizer

FloatArray = NDArray[np.float32]


def load(
    folder: str | os.PathLike[str],
    *,
    precision: str | None = None,
    providers: Providers = "auto",
    provider_options: Options | None = None,
    image_size: int | None = None,
    threads: int | None = None,
    records_placement: bool = False,
) -> "FastVLM":
    """Open an exported package.

    Args:
        precision: a variant of the package; the one that suits the providers best when None.
        providers: what runs the graphs. `auto` (docs/providers.md says what it does), a name like
            `cuda`, `vision=coreml,decoder=cpu` or the mapping of it, or ONNX Runtime's own list of
            names, or of names with their options, whose first is what was asked for.
        provider_options: for the provider asked for, over ours.
        image_size: side of the square input in pixels, one the package was exported for; its
            default when None.
        threads: per graph; one per physical core that this process may use when None.
        records_placement: note which nodes run where on the CPU too (`sessions`).

    Raises:
        PackageError: the folder is no package, or a file of it is missing, cut or altered.
        InputError: the package lacks this precision or image size, or one for these providers.
        ProviderError: ONNX Runtime or a provider is not installed, or a provider takes no node of
            a graph, or cannot load it.
    """
    begin = time.perf_counter()
    path = Path(folder)
    manifest = read_manifest(path)
    asked = parse(providers, provider_options)
    precision = choose_precision(manifest, precision, path, asked)
    image_size = choose_image_size(manifest, precision, image_size, path)
    choices = plan(asked, precision)
    files = manifest.files_of(precision, image_size)
    weights = [name for name in files if name.endswith((".data", ".npy"))]
    check_sizes(path, weights, manifest)
    check_files(path, [name for name in files if name not in weights], manifest)
    # Weights take long to hash, and are opened meanwhile: whatever their bytes, they are numbers.
    with ThreadPoolExecutor(1) as pool:
        check = pool.submit(check_hashes, path, weights, manifest)
        try:
            model = FastVLM(
                path, manifest, precision, image_size, choices, threads, records_placement
            )
        finally:
            check.result()
    model.load_seconds = time.perf_counter() - begin
    return model


class FastVLM:
    """A model ready to answer; made by `load`. Answers one question at a time.

    Attributes:
        sessions: the open graphs, by name.
        providers: ONNX Runtime's name of the provider of each.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        precision: str,
        image_size: int,
        choices: Mapping[str, Choice],
        threads: int | None,
        records_placement: bool,
    ) -> None:
        variant = manifest.variants[precision]
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
            graph: GraphSession(
                folder / file,
                with_model_cache(choices[graph], manifest.files[file].sha256),
                threads,
                records_placement=records_placement,
            )
            for graph, file in graphs.items()
        }
        self.providers = {graph: session.choice.ep for graph, session in sessions.items()}
        self._vision_encoder, self._projector = sessions[VISION_ENCODER], sessions[PROJECTOR]
        self._decoder = DecoderSession(sessions[DECODER], manifest.decoder, sessions.get(PREFILL))
        self.load_seconds = 0.0
        if COREML in (self.providers[VISION_ENCODER], self.providers[PROJECTOR]):
            self._check_coreml(manifest.files[graphs[VISION_ENCODER]].sha256)

    def _check_coreml(self, sha256: str) -> None:
        """Raise ProviderError unless CoreML's image features are the CPU's."""

        def encode_on_cpu(pixel_values: FloatArray) -> FloatArray:
            vision_encoder, projector = (
                GraphSession(session.path, Choice(CPU), self.threads)
                for session in (self._vision_encoder, self._projector)
            )
            hidden = vision_encoder.run([IMAGE_HIDDEN_STATES], {PIXEL_VALUES: pixel_values})[0]
            return projector.run([IMAGE_FEATURES], {IMAGE_HIDDEN_STATES: hidden})[0]

        check_features(sha256, self.image_size, self.encode_image, encode_on_cpu)

    def encode_image(self, pixel_values: FloatArray) -> FloatArray:
        """pixel_values [B, 3, S, S] -> image_features [B, num_image_tokens, hidden_size]."""
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

    def generate(
        self,
        picture: Picture,
        prompt: str,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 50,
        top_p: float = 1.0,
        seed: int | None = None,
        orient: bool = False,
    ) -> Generation:
        """Answer a question about a picture.

        Args:
            picture: a path, bytes, a binary file, a Pillow image, or uint8 [H, W, 3].
            max_new_tokens: the answer ends there at the latest, or where the context is full.
            temperature: 0 is greedy and always gives the same answer; see `Sampling`.
            orient: turn the picture as its EXIF data say, which predict.py does not.

        Raises:
            InputError: the picture, the prompt or a number cannot be used.
            PromptTooLongError: the prompt does not fit in the context.
        """
        pieces = self.stream(
            picture,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            orient=orient,
        )
        *_, last = pieces
        assert last.generation is not None
        return last.generation

    def stream(
        self,
        picture: Picture,
        prompt: str,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 50,
        top_p: float = 1.0,
        seed: int | None = None,
        orient: bool = False,
    ) -> Iterator[Piece]:
        """`generate`, piece by piece: the pieces' texts joined are the answer's text.

        What can be refused is refused at the call, before the first piece is asked for.
        """
        began = time.perf_counter()
        sampling = Sampling(temperature, top_k, top_p, seed)
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}; expected 1 or more.")
        prompt_ids = tokenize_prompt(self._tokenizer, self.manifest.prompt, prompt)
        max_new_tokens = min(
            max_new_tokens, room_for_answer(self.manifest, self.image_size, prompt_ids)
        )
        pixel_values = preprocess(read_picture(picture, orient=orient), self.image_size)
        return self._answer(pixel_values, prompt_ids, Sampler(sampling), max_new_tokens, began)

    def _answer(
        self,
        pixel_values: FloatArray,
        prompt_ids: PromptIds,
        sample: Sampler,
        max_new_tokens: int,
        began: float,
    ) -> Iterator[Piece]:
        preprocessed = time.perf_counter()

        # 1. The picture becomes rows of the decoder's input.
        image_features = self.encode_image(pixel_values)
        encoded = time.perf_counter()
        inputs_embeds = self.embed_prompt(prompt_ids, image_features)

        # 2. Prefill: the whole prompt at once.
        prompt_tokens = inputs_embeds.shape[1]
        cache = self._decoder.new_cache(prompt_tokens + max_new_tokens)
        logits = prefill(self._decoder, inputs_embeds, cache)
        prefilled = first_token = time.perf_counter()

        # 3. Decode: one token at a time, its text as soon as it is whole.
        tokens = decode(
            self._decoder,
            self._embed_tokens,
            sample,
            logits,
            cache,
            max_new_tokens,
            self.manifest.decoder.eos_token_ids,
        )
        text_stream, stripped = TextStream(self._tokenizer), StrippedStream()
        token_ids: list[int] = []
        texts: list[str] = []
        while True:
            try:
                token_id = next(tokens)
            except StopIteration as end:
                finish_reason = end.value
                break
            if not token_ids:
                first_token = time.perf_counter()
            token_ids.append(token_id)
            if text := stripped.add(text_stream.add([token_id])):
                texts.append(text)
                yield Piece(text)
        text = stripped.add(text_stream.finish())
        texts.append(text)
        ended = time.perf_counter()

        # 4. The last piece carries the whole answer.
        decode_seconds = ended - first_token
        runs = len(token_ids) - (finish_reason == "length")  # decoder runs after the prefill
        yield Piece(
            text,
            Generation(
                text="".join(texts),
                token_ids=token_ids,
                finish_reason=finish_reason,
                prompt_tokens=prompt_tokens,
                timings=Timings(
                    load=self.load_seconds,
                    preprocess=preprocessed - began,
                    vision=encoded - preprocessed,
                    prefill=prefilled - encoded,
                    first_token=first_token - began,
                    decode=decode_seconds,
                    tokens_per_second=runs / decode_seconds if runs > 0 else 0.0,
                ),
                model=self.manifest.source.name,
                precision=self.precision,
                providers=self.providers,
            ),
        )


def choose_precision(
    manifest: Manifest,
    precision: str | None,
    folder: Path,
    asked: Mapping[str, Choice] | None = None,
) -> str:
    """The asked variant if the package has it, what suits the providers when None.

    Args:
        asked: what was asked for by name; nothing when empty, the CPU when None.

    Raises:
        InputError: the package lacks it; the message says how to add it.
    """
    if precision is None:
        wanted = PROVIDERS["cpu"].precisions if asked is None else wanted_precisions(asked)
        fitting = [name for name in wanted or manifest.variants if name in manifest.variants]
        if not fitting:
            names = ", ".join(dict.fromkeys(choice.name for choice in (asked or {}).values()))
            raise InputError(
                f"{folder}: has no variant for {names}, only {', '.join(manifest.variants)}; "
                f"add one with `{add_command(manifest, folder)} --precision {wanted[0]}`, or "
                "choose with --precision."
            )
        return fitting[0]
    if precision not in manifest.variants:
        raise InputError(
            f"{folder}: has no {precision} variant, only {', '.join(manifest.variants)}; "
            f"add it with `{add_command(manifest, folder)} --precision {precision}`."
        )
    return precision


def choose_image_size(
    manifest: Manifest, precision: str, image_size: int | None, folder: Path
) -> int:
    """The asked image size if the variant has it, the default when None; else InputError."""
    sizes = manifest.variants[precision].vision_encoder
    chosen = manifest.image.default_size if image_size is None else image_size
    if str(chosen) not in sizes:
        raise InputError(
            f"{folder}: was not exported for {chosen} pixels, only for {', '.join(sizes)}; "
            f"add it with `{add_command(manifest, folder)} --image-size {chosen}`."
        )
    return chosen


def add_command(manifest: Manifest, folder: Path) -> str:
    """The command that adds to a package; a folder's or archive's name lacks its path."""
    return f"fastvlm-onnx export {manifest.source.name} -o {folder} --add"
