// A file server for tests, which can also fail in the ways that servers and connections do.

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import http from "node:http";
import path from "node:path";

const MEDIA_TYPES = /** @type {Record<string, string>} */ ({
  ".html": "text/html",
  ".css": "text/css",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
  ".json": "application/json",
});
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

/**
 * @param {import("node:test").TestContext | {after: (close: () => void) => void}} context
 * @param {Record<string, string>} folders by the beginning of the path, such as
 *   "/package/", and single files by their whole path
 * @param {{isIsolated?: boolean}} [options] isIsolated: pages may use threads
 */
export async function serveFolders(context, folders, { isIsolated = false } = {}) {
  /** Sends half of these files and then breaks the connection. @type {Set<string>} */
  const halved = new Set();
  /** Names of the files that were asked for. @type {string[]} */
  const requests = [];
  const server = http.createServer(async (request, response) => {
    const url = decodeURIComponent((request.url ?? "").split("?")[0]);
    const prefix = Object.keys(folders).sort((a, b) => b.length - a.length).find((begin) => url.startsWith(begin));
    const name = prefix?.endsWith("/") ? url.slice(prefix.length) || "index.html" : "";
    const file = prefix && path.join(folders[prefix], name);
    const size = file && (await stat(file).then((stats) => stats.size, () => null));
    requests.push(path.basename(url));
    if (!file || typeof size !== "number") return response.writeHead(404).end();
    response.writeHead(200, {
      "Content-Type": MEDIA_TYPES[path.extname(file)] ?? "application/octet-stream",
      "Content-Length": size,
      ...(isIsolated ? ISOLATION : {}),
    });
    if (!halved.has(path.basename(url))) return createReadStream(file).pipe(response);
    const half = createReadStream(file, { end: Math.floor(size / 2) });
    half.on("end", () => response.destroy()).pipe(response, { end: false });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(null)));
  context.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const address = /** @type {import("node:net").AddressInfo} */ (server.address());
  return { url: `http://127.0.0.1:${address.port}`, halved, requests };
}
