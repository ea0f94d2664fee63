// One job of benchmarks/web.py: models on an input in onnxruntime-node, onnxruntime-web under Node.js, or in Chromium.
// usage: node web.mjs JOB.json; writes {opened_ms, outputs (base64 of the first one), times_ms} to the job's `out`.
import fs from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";

const job = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const require = createRequire(path.join(job.modules, "x.js"));
const floats = (file) => { const bytes = fs.readFileSync(file); return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4); };
const SAMPLE_MS = 20, WARM_UP = 10;

/** What engine.js does in a browser, here. */
async function inNode(name) {
  const ort = require(name);
  ort.env.logLevel = "fatal";
  if (name === "onnxruntime-web") ort.env.wasm.numThreads = 1;
  const found = { version: JSON.parse(fs.readFileSync(path.join(job.modules, name, "package.json"), "utf8")).version, opened_ms: {}, outputs: {}, times_ms: {} };
  const sessions = {};
  for (const [slot, file] of Object.entries(job.models)) {
    const started = performance.now();
    sessions[slot] = await ort.InferenceSession.create(file, { intraOpNumThreads: 1, interOpNumThreads: 1 });
    found.opened_ms[slot] = performance.now() - started;
  }
  const run = (slot, values, dims) => sessions[slot].run({ [sessions[slot].inputNames[0]]: new ort.Tensor("float32", values, dims) });
  const x = floats(job.input);
  for (const slot of Object.keys(sessions)) {
    const y = (await run(slot, x, job.dims))[sessions[slot].outputNames[0]].data;
    found.outputs[slot] = Buffer.from(y.buffer, y.byteOffset, y.byteLength).toString("base64");
  }
  if (!job.samples) return found;
  const one = x.slice(0, x.length / job.dims[0]), dims = [1, ...job.dims.slice(1)], runs = {};
  const sample = async (slot, count) => { // milliseconds of the processor
    const started = process.cpuUsage();
    for (let i = 0; i < count; i++) await run(slot, one, dims);
    const { user, system } = process.cpuUsage(started);
    return (user + system) / 1000 / count;
  };
  for (const slot of Object.keys(sessions)) {
    found.times_ms[slot] = [];
    await sample(slot, WARM_UP);
    runs[slot] = Math.max(1, Math.ceil(SAMPLE_MS / Math.max(0.05, await sample(slot, 1))));
  }
  for (let i = 0; i < job.samples; i++) for (const slot of Object.keys(sessions)) found.times_ms[slot].push(await sample(slot, runs[slot]));
  return found;
}

const TYPES = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };

/** The sample's worker (samples/web/engine.js) in Chromium, driven by Playwright. */
async function inChromium() {
  const { chromium } = require("playwright-core");
  const files = { "/input": job.input, ...Object.fromEntries(Object.entries(job.models).map(([slot, file]) => [`/models/${slot}`, file])) };
  const server = http.createServer((request, response) => {
    const name = request.url.split("?")[0];
    const file = files[name] ?? (name.startsWith("/web/node_modules/") ? path.join(job.modules, name.slice(18)) : path.join(job.page, name.slice(5)));
    if (name === "/") response.setHeader("Content-Type", "text/html").end("<!doctype html>");
    else if (!fs.existsSync(file)) response.writeHead(404).end();
    else response.setHeader("Content-Type", TYPES[path.extname(file)] ?? "application/octet-stream").end(fs.readFileSync(file));
  });
  await new Promise((resolve) => { server.listen(0, "127.0.0.1", resolve); });
  const browser = await chromium.launch({ executablePath: job.chromium, args: ["--js-flags=--no-liftoff", ...(process.getuid() ? [] : ["--no-sandbox"])] });
  try {
    const page = await (await browser.newContext()).newPage();
    await page.goto(`http://127.0.0.1:${server.address().port}/`);
    const found = await page.evaluate(async ({ slots, dims, samples }) => {
      const worker = new Worker("/web/engine.js?local", { type: "module" });
      const ask = (call, given = {}) => new Promise((resolve, reject) => {
        worker.onmessage = ({ data }) => (data.error === undefined ? resolve(data.result) : reject(new Error(data.error)));
        worker.postMessage({ id: 0, call, ...given });
      });
      const read = async (name) => (await fetch(name)).arrayBuffer();
      const got = { version: (await ask("load")).version, opened_ms: {}, outputs: {}, times_ms: {} };
      for (const slot of slots) got.opened_ms[slot] = (await ask("open", { slot, bytes: await read(`/models/${slot}`) })).ms;
      const values = new Float32Array(await read("/input"));
      for (const [slot, [{ data }]] of Object.entries(await ask("run", { slots, values, dims }))) {
        let text = "";
        for (const byte of new Uint8Array(data.buffer)) text += String.fromCharCode(byte);
        got.outputs[slot] = btoa(text);
      }
      if (samples) got.times_ms = await ask("time", { slots, values: values.slice(0, values.length / dims[0]), dims: [1, ...dims.slice(1)], budget: 1e5 });
      return got;
    }, { slots: Object.keys(job.models), dims: job.dims, samples: job.samples });
    return { ...found, browser: browser.version() };
  } finally {
    await browser.close();
    server.close();
  }
}

const found = await (job.engine === "chromium" ? inChromium() : inNode(job.engine));
fs.writeFileSync(job.out, JSON.stringify(found));
process.exit(0);
