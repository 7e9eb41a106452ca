"""The thread that reads the images of requests in the queue."""

from fastvlm_onnx.runtime.serving.queue import RequestQueue
from fastvlm_onnx.runtime.vision.image_encoder import ImageEncoder


def read_images(encoder: ImageEncoder, queue: RequestQueue) -> None:
    """Read images until the queue is stopped. Images that cannot be read fail their jobs."""
    while True:
        with queue.changed:
            queue.changed.wait_for(lambda: queue.is_stopped or queue.next_images() is not None)
            images = None if queue.is_stopped else queue.next_images()
        if images is None:
            return
        try:
            images.read(encoder)
        except Exception as error:
            with queue.changed:
                failed = queue.take_failed(images)
            for job in failed:
                queue.fail(job, error)
        queue.wake()
