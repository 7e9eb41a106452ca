"""The thread that runs the decoder: one loop, which answers join and leave."""

import logging
import time
from collections import Counter
from typing import Final

from fastvlm_onnx.errors import ClosedError
from fastvlm_onnx.runtime.answering.batch import RunningBatch
from fastvlm_onnx.runtime.answering.components import Components
from fastvlm_onnx.runtime.answering.prefill import Prefill
from fastvlm_onnx.runtime.answering.see import see_image
from fastvlm_onnx.runtime.serving.queue import Job, RequestQueue
from fastvlm_onnx.runtime.serving.request import AnswerJob, SeeJob
from fastvlm_onnx.runtime.serving.seen_images import SeenImages

# A row of the batch has room for this many positions at first, and grows.
ROW_POSITIONS: Final = 1024
# A longer prompt is prefilled in parts of this many positions, and answers go on between two parts.
# A question about an image fits in one part; smaller parts take more time altogether.
PART_POSITIONS: Final = 384
# Running answers get this part of the newcomers' time. Their steps and a newcomer's encoding do not
# overlap: each would slow the other down more than by half.
SHARE: Final = 1 / 8
# Newcomers join one after the other until they owe running answers more than this many seconds: for
# a quarter of a second. A step of one row takes nearly half the time of a step of eight, so
# newcomers that take little time join together.
MOST_OWED: Final = SHARE * 0.25

log = logging.getLogger("fastvlm_onnx")


class DecodingLoop:
    """Prefills a newcomer, decodes a token of every running answer, and begins again.

    Attributes:
        totals: positions of prompts ("prompt"), the part of them that was cached ("cached"), and
            tokens of answers that have ended ("generated").
    """

    def __init__(self, components: Components, queue: RequestQueue, seen: SeenImages) -> None:
        self._components, self._queue, self._seen = components, queue, seen
        self._joining: tuple[AnswerJob, Prefill] | None = None
        self._rows: list[AnswerJob] = []
        self._batch = self._new_batch()
        # Seconds of steps that newcomers owe to running answers.
        self._owed = 0.0
        self.totals: Counter[str] = Counter()

    def run(self) -> None:
        """Run until the queue is stopped and every job has ended."""
        queue = self._queue
        while True:
            with queue.changed:
                over, job = queue.take_over(), self._take_ready()
                while not (over or job or self._joining or self._rows):
                    if queue.is_stopped:
                        return
                    queue.changed.wait(queue.seconds_to_deadline())
                    over, job = queue.take_over(), self._take_ready()
            for waited in over:
                self._end(waited)
            began = time.perf_counter()
            if job is not None:
                self._start(job)
            if self._joining is not None:
                self._advance(*self._joining)
            self._owed += SHARE * (time.perf_counter() - began)
            self._tell_free_rows()
            if self._is_next_ready():
                continue
            try:
                self._drop_over()
                if self._rows:
                    self._step()
            except Exception as error:
                log.exception("a step of the decoder failed; the answers that were running end")
                self._fail_rows(error)
            self._tell_free_rows()

    def _take_ready(self) -> Job | None:
        if not self._may_join():
            return None
        self._owed = max(0.0, self._owed) if self._rows else 0.0
        return self._queue.take_ready()

    def _is_next_ready(self) -> bool:
        """Another newcomer joins before the next step."""
        with self._queue.changed:
            return self._may_join() and self._queue.find_ready() is not None

    def _may_join(self) -> bool:
        return not self._joining and (not self._rows or self._owed <= MOST_OWED)

    # --- jobs join -----------------------------------------------------------------------------

    def _start(self, job: Job) -> None:
        """Begin to prefill a request's prompt, or prefill an image that is to be seen."""
        components = self._components
        try:
            features = job.images.encode(components.image_encoder)
            if isinstance(job, SeeJob):
                seen = see_image(components, features[0], *self._seen.new_id())
                self._seen.add(seen)
                job.result.set_result(seen)
                return
            prefill = self._batch.begin(
                components.embed(job.parts, features),
                job.begin(components),
                job.max_new_tokens,
                components.key(job.parts, features),
            )
        except Exception as error:
            self._fail(job, error)
            return
        self._joining = job, prefill
        self._tell_free_rows()

    def _advance(self, job: AnswerJob, prefill: Prefill) -> None:
        """Prefill the next part of a prompt; after the last part its answer gets a row."""
        try:
            if job.is_over or self._queue.is_stopped:
                prefill.answer.end(job.reason_to_end)
            elif not prefill.advance(PART_POSITIONS):
                return
            self._joining = None
            with self._queue.changed:
                self.totals["prompt"] += prefill.cache.length
                self.totals["cached"] += prefill.answer.cached_tokens
            # The first token is handed out before milliseconds of copying.
            self._publish(job)
            if not prefill.answer.has_ended:
                self._batch.admit(prefill)
                self._rows.append(job)
        except Exception as error:
            self._joining = None
            self._fail(job, error)

    # --- answers go on and end -----------------------------------------------------------------

    def _step(self) -> None:
        began = time.perf_counter()
        self._batch.step()
        for job in list(self._rows):
            self._publish(job)
        self._owed -= time.perf_counter() - began

    def _drop_over(self) -> None:
        """End answers that were cancelled, or that the end of the scheduler cuts off."""
        for job in list(self._rows):
            if job.running.is_cancelled or self._queue.is_stopped:
                assert job.answer is not None
                self._batch.leave(job.answer)
                job.answer.end(job.reason_to_end)
                self._publish(job)

    def _publish(self, job: AnswerJob) -> None:
        """Hand out what has come of an answer; the row of an answer that has ended is free."""
        answer = job.answer
        assert answer is not None
        if answer.has_ended:
            if job in self._rows:
                self._rows.remove(job)
            if not self._rows:
                self._batch = self._new_batch()  # releases the memory of long rows
            with self._queue.changed:
                self.totals["generated"] += len(answer.token_ids)
                self._queue.finished["error" if answer.error else str(answer.finish_reason)] += 1
            self._tell_free_rows()
        job.publish(self._components)

    def _end(self, job: Job) -> None:
        """End a job that has not begun."""
        if isinstance(job, SeeJob):
            job.fail(ClosedError("the scheduler was closed before the image was seen."))
            return
        try:
            job.begin(self._components).end(job.reason_to_end)
        except Exception as error:
            self._fail(job, error)
        else:
            self._publish(job)

    def _fail_rows(self, error: Exception) -> None:
        failed, self._rows = self._rows, []
        self._batch = self._new_batch()
        for job in failed:
            self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        self._tell_free_rows()
        self._queue.fail(job, error)

    def _tell_free_rows(self) -> None:
        queue = self._queue
        with queue.changed:
            free = queue.max_rows - len(self._rows) - (self._joining is not None)
            if free != queue.free_rows:
                queue.free_rows = free
                queue.changed.notify_all()

    def _new_batch(self) -> RunningBatch:
        model = self._components.language_model
        return RunningBatch(
            model,
            rows=self._queue.max_rows,
            capacity=min(ROW_POSITIONS, model.sizes.context_length),
            prefixes=self._components.prefixes,
        )
