"""Requests that wait: for their images to be read, and for a row."""

import threading
import time
from collections import Counter
from collections.abc import Sequence

from fastvlm_onnx.errors import BusyError, ClosedError
from fastvlm_onnx.runtime.serving.request import AnswerJob, RequestImages, SeeJob

Job = AnswerJob | SeeJob


class RequestQueue:
    """The jobs that have not begun, and what the scheduler's threads tell each other.

    Everything is read and written under `changed`, which is notified of each change.

    Attributes:
        jobs: in the order of their submission.
        free_rows: rows that no answer has.
        finished: answers that have ended, by finish reason, or "error".
        is_closing: no more jobs are taken.
        is_stopped: jobs that are left are to be dropped, and the threads are to end.
    """

    def __init__(self, max_waiting: int, max_rows: int) -> None:
        """Begin an empty queue.

        Args:
            max_waiting: jobs that may wait.
            max_rows: answers that are decoded together.
        """
        self.changed = threading.Condition()
        self.jobs: list[Job] = []
        self.free_rows, self.max_rows = max_rows, max_rows
        self.finished: Counter[str] = Counter()
        self.is_closing = self.is_stopped = False
        self._max_waiting = max_waiting

    @property
    def is_idle(self) -> bool:
        """No job waits, and no answer is running."""
        return not self.jobs and self.free_rows == self.max_rows

    def wake(self) -> None:
        """Make the threads look at the queue, and at answers that were cancelled."""
        with self.changed:
            self.changed.notify_all()

    def check_room(self, count: int) -> None:
        """Refuse jobs that the queue cannot take.

        Args:
            count: number of jobs.

        Raises:
            BusyError: more jobs would wait than may.
            ClosedError: no more jobs are taken.
        """
        with self.changed:
            if self.is_closing:
                raise ClosedError("the scheduler is closing and takes no more requests.")
            if len(self.jobs) + count > self._max_waiting:
                raise BusyError(
                    f"{len(self.jobs)} requests wait, and at most {self._max_waiting} may; ask "
                    "again later."
                )

    def add(self, jobs: Sequence[Job]) -> None:
        """Add all of the jobs, or none.

        Raises:
            BusyError: more jobs would wait than may.
            ClosedError: no more jobs are taken.
        """
        with self.changed:
            self.check_room(len(jobs))
            self.jobs += jobs
            self.changed.notify_all()

    def take_over(self) -> list[Job]:
        """Take the jobs that end without having begun: cancelled, over time, or dropped."""
        return self._take([job for job in self.jobs if self.is_stopped or job.is_over])

    def find_ready(self) -> Job | None:
        """The first job whose images are read, if it needs no row or a row is free."""
        for job in self.jobs:
            if job.images.is_read and (self.free_rows or isinstance(job, SeeJob)):
                return job
        return None

    def take_ready(self) -> Job | None:
        """Take the job that `find_ready` finds."""
        job = self.find_ready()
        if job is None:
            return None
        # The row is taken at once: a queue that looked idle now would be stopped.
        self.free_rows -= isinstance(job, AnswerJob)
        return self._take([job])[0]

    def take_failed(self, images: RequestImages) -> list[Job]:
        """Take the jobs with these images, which cannot be read."""
        return self._take([job for job in self.jobs if job.images is images])

    def next_images(self) -> RequestImages | None:
        """The first images that are to be read now.

        Images of a question wait until a row is free for its answer, since pixel_values take much
        more memory than an image file.
        """
        free = self.free_rows
        for job in self.jobs:
            if not job.images.is_read and (free > 0 or isinstance(job, SeeJob)):
                return job.images
            free -= isinstance(job, AnswerJob)
        return None

    def seconds_to_deadline(self) -> float | None:
        """Seconds until a job that waits is over time; None for no such job."""
        first = min((job.deadline for job in self.jobs), default=float("inf"))
        return None if first == float("inf") else max(0.0, first - time.perf_counter())

    def fail(self, job: Job, error: Exception) -> None:
        """End a job with an error."""
        with self.changed:
            self.finished["error"] += isinstance(job, AnswerJob)
            self.changed.notify_all()
        job.fail(error)

    def _take(self, jobs: list[Job]) -> list[Job]:
        for job in jobs:
            self.jobs.remove(job)
        if jobs:
            self.changed.notify_all()
        return jobs
