"""GET /docs: the API's description as a page without scripts, so that it needs no other site."""

import json
from html import escape
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from fastvlm_onnx.server.openapi import openapi

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;"
    "color-scheme:light dark}code,pre{font:14px/1.5 ui-monospace,monospace}"
    "pre{overflow-x:auto;padding:1rem;border:1px solid #8884;border-radius:.5rem}"
    "td,th{text-align:left;vertical-align:top;padding:.25rem 1rem .25rem 0}"
)


async def docs_page(_: Request) -> Response:
    """The page."""
    document = openapi()
    operations = [
        f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
        f"<p>{escape(operation['summary'])}</p>" + _body(operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    statuses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    errors = "".join(
        f"<tr><th>{status}<td>{escape(found['description'])}" for status, found in statuses.items()
    )
    schemas = "".join(
        f"<h3 id='{escape(name)}'>{escape(name)}</h3>"
        f"<pre>{escape(json.dumps(schema, indent=1))}</pre>"
        for name, schema in document["components"]["schemas"].items()
    )
    title = f"{document['info']['title']} {document['info']['version']}"
    return HTMLResponse(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        "<meta name=viewport content='width=device-width'>"
        f"<style>{_STYLE}</style><h1>{title}</h1>"
        "<p>The same as a document: <a href=/openapi.json>/openapi.json</a>.</p>"
        f"{''.join(operations)}<h2>Statuses</h2><table>{errors}</table>"
        f"<h2>Schemas</h2>{schemas}</html>",
        headers=_HEADERS,
    )


def _body(operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    lines = []
    for kind, described in content.items():
        name = described["schema"].get("$ref", "").rpartition("/")[2]
        schema = f"<a href='#{escape(name)}'>{escape(name)}</a>" if name else "the file"
        lines.append(f"<li><code>{escape(kind)}</code>: {schema}")
    return f"<p>Body:<ul>{''.join(lines)}</ul>" if lines else ""
