// The worker that opens and runs models: the page stays responsive, and a run that is not wanted any more can be ended.
import { runtimeUrl } from "./runtime.js";

const sessions = new Map();
let loading;

/** onnxruntime-web, on one thread: more need headers of the server (cross-origin isolation) that a plain one does not send. */
function runtime() {
  loading ??= import(runtimeUrl(self.location.search)).then((ort) => {
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = "error";
    return ort;
  });
  return loading;
}

const plain = (entries) => entries.map(({ name, type, shape }) => ({ name, type: type ?? "", shape: [...(shape ?? [])] }));

async function open({ slot, bytes }) {
  const ort = await runtime();
  const started = performance.now();
  const session = await ort.InferenceSession.create(new Uint8Array(bytes), { executionProviders: ["wasm"] });
  await sessions.get(slot)?.release();
  sessions.set(slot, session);
  return { inputs: plain(session.inputMetadata), outputs: plain(session.outputMetadata), ms: performance.now() - started };
}

/** Outputs of each model for one input; tensors of WebAssembly are copied out and freed. */
async function run({ slots, values, dims }) {
  const ort = await runtime();
  const found = {};
  for (const slot of slots) {
    const session = sessions.get(slot);
    const made = await session.run({ [session.inputNames[0]]: new ort.Tensor(values, dims) });
    found[slot] = session.outputNames.map((name) => ({ name, dims: [...made[name].dims], data: Float32Array.from(made[name].data, Number) }));
    Object.values(made).forEach((tensor) => tensor.dispose());
  }
  return found;
}

const SAMPLE_MS = 8; // clocks of browsers tick in steps of up to 1 ms
const SAMPLES = 21;
const WARM_UP = 3; // runs, and at least so many milliseconds: browsers compile what runs often once more
const WARM_UP_MS = 400;

/** Milliseconds a run of each model: they take turns, a sample is as many runs as take 8 ms, and there are up to 21 within `budget`. */
async function time({ slots, values, dims, budget }) {
  const ort = await runtime();
  const once = async (slot) => {
    const session = sessions.get(slot);
    const made = await session.run({ [session.inputNames[0]]: new ort.Tensor(values, dims) });
    Object.values(made).forEach((tensor) => tensor.dispose());
  };
  const sample = async (slot, runs) => {
    const started = performance.now();
    for (let i = 0; i < runs; i++) await once(slot);
    return (performance.now() - started) / runs;
  };
  const runs = {}, taken = Object.fromEntries(slots.map((slot) => [slot, []]));
  for (const slot of slots) {
    const warm = performance.now();
    for (let i = 0; i < WARM_UP || performance.now() - warm < WARM_UP_MS; i++) await once(slot);
    runs[slot] = Math.max(1, Math.ceil(SAMPLE_MS / Math.max(await sample(slot, 1), 0.05)));
  }
  const started = performance.now();
  for (let i = 0; i < SAMPLES && (i < 5 || performance.now() - started < budget); i++) {
    for (const slot of slots) taken[slot].push(await sample(slot, runs[slot]));
  }
  return taken;
}

const CALLS = { open, run, time, load: async () => ({ version: (await runtime()).env.versions.common }) };

self.onmessage = async ({ data: { id, call, ...given } }) => {
  try {
    self.postMessage({ id, result: await CALLS[call](given) });
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
};
