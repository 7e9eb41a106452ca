"""POST /v1/see: an image is encoded and prefilled before the question about it comes."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fastvlm_onnx.server.errors import bad_request
from fastvlm_onnx.server.pictures import Pictures
from fastvlm_onnx.server.request_log import note
from fastvlm_onnx.server.schemas import SeeRequest, parse
from fastvlm_onnx.server.service import Service


class Seeing:
    """Takes images before they are asked about."""

    def __init__(self, pictures: Pictures, *, orient: bool, max_workers: int) -> None:
        self._pictures, self._orient = pictures, orient
        # Each image that waits for the scheduler takes a thread.
        self._waiting = ThreadPoolExecutor(max_workers, "fastvlm-onnx see")

    async def see(self, request: Request, service: Service) -> Response:
        """Encode and prefill an image; the response names it.

        The body is the image's file with a Content-Type of image/..., or JSON with its URL.

        Raises:
            ApiError: the image cannot be read.
            FastVLMError: the image cannot be encoded.
        """
        body = await request.body()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            url = parse(SeeRequest, body).image
            content = await self._pictures.read(url, request.state.ticket.add_bytes)
        elif kind.startswith("image/") or kind == "application/octet-stream":
            await self._pictures.check(body)
            content = body
        else:
            raise bad_request(
                f"the Content-Type is {kind[:50]!r}; expected image/png, image/jpeg or the like "
                "with the image's file, or application/json with its URL.",
                code="invalid_content_type",
            )
        began = time.perf_counter()
        seen = await asyncio.get_running_loop().run_in_executor(
            self._waiting, partial(service.scheduler.see, content, orient=self._orient)
        )
        seconds = time.perf_counter() - began
        note(request, id=seen.id, see_ms=round(seconds * 1e3, 3))
        return JSONResponse(
            {
                "id": seen.id,
                "object": "see",
                "created": int(time.time()),
                "expires_at": int(seen.expires_at or 0),
                "image_tokens": service.model.num_image_tokens,
                "timings": {"see_ms": round(seconds * 1e3, 3)},
            }
        )
