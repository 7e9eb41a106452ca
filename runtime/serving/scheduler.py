"""Answers to many callers at once: one loop over the decoder, which answers join and leave.

Two threads work. The first runs the loop: it prefills a newcomer, decodes one token of all running
answers, and so on. The second reads and encodes the images of requests in the queue.
"""

import atexit
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Unpack

from fastvlm_onnx.arguments import checks_arguments, instance
from fastvlm_onnx.runtime.answering.see import SeenImage
from fastvlm_onnx.runtime.engine.options import GenerationConfig, GenerationOptions
from fastvlm_onnx.runtime.engine.prefix_cache import CacheFigures
from fastvlm_onnx.runtime.model import FastVLM
from fastvlm_onnx.runtime.serving.image_thread import read_images
from fastvlm_onnx.runtime.serving.loop import DecodingLoop
from fastvlm_onnx.runtime.serving.queue import RequestQueue
from fastvlm_onnx.runtime.serving.request import AnswerJob, Request, RequestImages, SeeJob
from fastvlm_onnx.runtime.serving.running_answer import RunningAnswer
from fastvlm_onnx.runtime.serving.seen_images import SeenImages
from fastvlm_onnx.runtime.serving.stats import SchedulerStats
from fastvlm_onnx.runtime.text.prompt import question
from fastvlm_onnx.runtime.vision.image_encoder import ImageFeatures, ImageInput, images_of


class Scheduler:
    """Answers many callers' requests with one model. Any number of threads may use it."""

    @checks_arguments
    def __init__(
        self,
        model: FastVLM,
        *,
        max_rows: int = 8,
        max_waiting: int = 64,
        see_seconds: float = 600.0,
        max_seen: int = 64,
    ) -> None:
        """Start the threads.

        Args:
            max_rows: answers that are decoded together.
            max_waiting: requests that may wait for a row.
            see_seconds: time that the id of a seen image is good for.
            max_seen: seen images that are kept; the oldest make room for new ones.

        Raises:
            InputError: a number is out of range, or the model is closed.
        """
        instance("model", model, FastVLM)
        self._model, self._components = model, model.components()
        self._queue = RequestQueue(max_waiting, max_rows)
        self._seen = SeenImages(see_seconds, max_seen)
        self._loop = DecodingLoop(self._components, self._queue, self._seen)
        read = partial(read_images, self._components.image_encoder, self._queue)
        self._threads = [
            threading.Thread(target=target, name=f"fastvlm-onnx {name}", daemon=True)
            for target, name in ((self._loop.run, "decoder"), (read, "images"))
        ]
        for thread in self._threads:
            thread.start()
        # Threads inside ONNX Runtime must not outlive the interpreter.
        atexit.register(self.close, 0.0)

    # --- asking ------------------------------------------------------------------------------

    def submit(self, request: Request) -> RunningAnswer:
        """Queue a request.

        Raises:
            InputError: image features are of another model, the options ask for a structure that
                cannot be used, or the model is closed.
            PromptTooLongError: the prompt leaves no room for an answer.
            BusyError: `max_waiting` requests wait already.
            ClosedError: the scheduler is closing or closed.
        """
        return self.submit_many(request, 1)[0]

    @checks_arguments
    def submit_many(self, request: Request, count: int) -> list[RunningAnswer]:
        """Queue a request for several answers; all of them or none is queued.

        Their prompt is prefilled once, if the prefix cache can hold it. With a seed, each answer
        after the first has the next seed.

        Args:
            count: number of answers.

        Raises:
            InputError: image features are of another model, the options ask for a structure that
                cannot be used, or the model is closed.
            PromptTooLongError: the prompt leaves no room for an answer.
            BusyError: the answers do not fit among the `max_waiting` requests that may wait.
            ClosedError: the scheduler is closing or closed.
        """
        called = time.perf_counter()
        instance("request", request, Request)
        self._queue.check_room(count)
        self._components.constraints.check(request.config)
        images = self._images(request.images, orient=request.config.orient)
        seed = request.config.seed
        jobs = []
        for index in range(count):
            seeded = request
            if index and seed is not None:
                seeded = replace(request, config=replace(request.config, seed=seed + index))
            running = RunningAnswer(self._queue.wake)
            jobs.append(AnswerJob(self._components, seeded, images, running, called))
        self._queue.add(jobs)
        return [job.running for job in jobs]

    def ask(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str,
        **options: Unpack[GenerationOptions],
    ) -> RunningAnswer:
        """Queue a question about an image: `FastVLM.generate` in company.

        Raises:
            InputError: the prompt or an option cannot be used, or the model is closed. (An image
                that cannot be read is an error of the answer.)
            PromptTooLongError: the prompt leaves no room for an answer.
            BusyError: `max_waiting` requests wait already.
            ClosedError: the scheduler is closing or closed.
        """
        images = images_of(image)
        parts = self._components.template.prompt(question(prompt, len(images)))
        return self.submit(Request(parts, images, GenerationConfig(**options)))

    @checks_arguments
    def see(self, image: ImageInput, *, orient: bool = False) -> SeenImage:
        """Encode and prefill an image before the question comes; see `FastVLM.see`.

        Returns:
            The image with an id, under which `seen` finds it again.

        Raises:
            InputError: the image cannot be read, or the model is closed.
            ProviderError: a provider failed.
            BusyError: `max_waiting` requests wait already.
            ClosedError: the scheduler is closing or closed.
        """
        self._queue.check_room(1)
        job = SeeJob(self._images([image], orient=orient))
        self._queue.add([job])
        return job.result.result()

    @checks_arguments
    def seen(self, id: str) -> SeenImage:
        """The image that `see` gave this id.

        Raises:
            NotSeenError: the id is unknown, or has expired.
        """
        return self._seen.get(id)

    def stats(self) -> SchedulerStats:
        """Figures of this moment."""
        queue, loop = self._queue, self._loop
        with queue.changed:
            return SchedulerStats(
                running=queue.max_rows - queue.free_rows,
                waiting=len(queue.jobs),
                prompt_tokens=loop.totals["prompt"],
                cached_tokens=loop.totals["cached"],
                generated_tokens=loop.totals["generated"],
                finished=dict(queue.finished),
                prefixes=self._components.prefixes.figures,
                image_features=CacheFigures(*self._components.image_encoder.cache_figures),
                seen_images=len(self._seen),
            )

    # --- the end -----------------------------------------------------------------------------

    @checks_arguments
    def close(self, grace: float | None = None) -> None:
        """Take no more requests, end the answers, and stop the threads.

        Args:
            grace: seconds that answers may take to end by themselves. Then they are cancelled. None
                waits for all of them.
        """
        queue = self._queue
        with queue.changed:
            queue.is_closing = True
            queue.changed.wait_for(lambda: queue.is_idle, grace)
            queue.is_stopped = True
            queue.changed.notify_all()
        for thread in self._threads:
            thread.join()
        atexit.unregister(self.close)
        self._seen.clear()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _images(self, images: Sequence[ImageInput], *, orient: bool) -> RequestImages:
        encoder = self._model.components().image_encoder
        for image in images:
            if isinstance(image, ImageFeatures):
                encoder.read(image)  # features of another model are refused at once
        return RequestImages(list(images), orient=orient)
