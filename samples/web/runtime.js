// Where the page takes onnxruntime-web from: this one constant.
export const VERSION = "1.30.0";
const CDN = `https://cdn.jsdelivr.net/npm/onnxruntime-web@${VERSION}/dist/`;
// What `npm install --no-save --prefix samples/web onnxruntime-web@1.30.0` leaves beside this file; taken with `?local` in the address.
const LOCAL = new URL("node_modules/onnxruntime-web/dist/", import.meta.url).href;

/** Address of the module that holds the WebAssembly build; the 14 MB binary is fetched from beside it. */
export const runtimeUrl = (search) => `${new URLSearchParams(search).has("local") ? LOCAL : CDN}ort.wasm.bundle.min.mjs`;
