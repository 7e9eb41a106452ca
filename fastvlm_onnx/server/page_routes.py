"""The page's files over HTTP: index.html at `/`, each other file at `/page/NAME`.

The files are static and hold no data, so they need no key. They know nothing of the model; their
scripts talk to the API of this server.
"""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE: Final = Path(str(files("fastvlm_onnx.server"))) / "page"

MEDIA_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

# Scripts, styles and connections of this origin only. Pictures are also blobs that the page makes,
# and a camera's stream is a media source. No string becomes markup (trusted types).
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob: mediastream:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Permissions-Policy": "camera=(self), screen-wake-lock=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # A new version of the package brings new files. The browser asks with the ETag each time.
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """A route for each file of the page. The files are read once, here."""
    return [_route(path) for path in sorted(PAGE.iterdir()) if path.suffix in MEDIA_TYPES]


def _route(path: Path) -> Route:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": etag}

    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=MEDIA_TYPES[path.suffix], headers=headers)

    url = "/" if path.name == "index.html" else f"/page/{path.name}"
    return Route(url, send, methods=["GET"], name=f"page:{path.name}")
