"""OpenVINO on the CPU: vision in one infer request, a stateful language model in another."""

import numpy as np
import openvino as ov
from peers.job import Job
from peers.measuring import FloatArray, Prompt

# way's precision -> that of vision encoder and projector
VISION = {"fp32": "fp32", "int8": "int8", "int4": "int8"}


class OpenVINOModel:
    """A precision. Keys and values stay inside OpenVINO."""

    takes_ids = False

    def __init__(self, job: Job) -> None:
        precision = job.way.removeprefix("openvino-")
        vision = job.openvino_vision / f"{VISION[precision]}.xml"
        language = job.openvino_language / f"{precision}.xml"
        is_fp32 = precision == "fp32"
        names = ("fp32",) if is_fp32 else ("int8", "scale")
        embeddings = [job.openvino_language / f"embed_tokens.{name}.npy" for name in names]
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads}
        if is_fp32:
            # By default bf16 where the processor has it, and keys and values in uint8.
            options |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        core = ov.Core()
        self._vision = core.compile_model(vision, "CPU", options).create_infer_request()
        self._language = core.compile_model(language, "CPU", options).create_infer_request()
        self._embed_tokens = [np.load(file, mmap_mode="r") for file in embeddings]
        self.files = [
            *(
                file.with_suffix(suffix)
                for file in (vision, language)
                for suffix in (".xml", ".bin")
            ),
            *embeddings,
        ]

    def encode_image(self, pixel_values: FloatArray) -> FloatArray:
        self._vision.infer([pixel_values], share_inputs=True)
        return self._vision.get_output_tensor(0).data

    def prefill(self, prompt: Prompt, image_features: FloatArray) -> int:
        self._language.reset_state()
        self._length = 0
        before, after = self._embed(prompt.before_image), self._embed(prompt.after_image)
        return self._run(np.concatenate([before, image_features[0], after])[None])

    def decode_one_token(self, token_id: int) -> int:
        return self._run(self._embed([token_id])[None])

    def first_logits(self) -> FloatArray:
        return self._language.get_output_tensor(0).data.ravel().copy()

    def _embed(self, token_ids: list[int]) -> FloatArray:
        rows: FloatArray = self._embed_tokens[0][token_ids].astype(np.float32)
        for scale in self._embed_tokens[1:]:
            rows *= scale[token_ids]
        return rows

    def _run(self, inputs_embeds: FloatArray) -> int:
        start, self._length = self._length, self._length + inputs_embeds.shape[1]
        self._language.infer(
            {
                "inputs_embeds": inputs_embeds,
                "attention_mask": np.ones((1, self._length), np.int64),
                "position_ids": np.arange(start, self._length)[None],
                "beam_idx": np.zeros(1, np.int32),
            },
            share_inputs=True,
        )
        return int(self._language.get_output_tensor(0).data.argmax())


load = OpenVINOModel
