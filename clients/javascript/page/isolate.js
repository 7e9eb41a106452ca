// Threads of WebAssembly share memory, which a page may use only where two headers isolate it. Many
// file servers cannot send headers, so a service worker adds them to the answers of any server.

/** Isolate the page; loads it once more where that needs the service worker. */
export async function isolatePage() {
  if (crossOriginIsolated || !navigator.serviceWorker) return;
  try {
    await navigator.serviceWorker.register(new URL("../service_worker.js", import.meta.url));
    await navigator.serviceWorker.ready;
  } catch {
    return; // The page works without, on one thread.
  }
  // A page is isolated by the headers that it came with. Where they did not do it, nothing will.
  if (sessionStorage.getItem("fastvlm-onnx isolated")) return;
  sessionStorage.setItem("fastvlm-onnx isolated", "tried");
  location.reload();
  await new Promise(() => {}); // The page is leaving.
}
