// Opens, runs and times one model in ONNX Runtime's builds for JavaScript: what openers.py and worker.py are for Python.
// `node worker.cjs job.json`; NODE_PATH says where the package lies.
"use strict";
const fs = require("fs");
const path = require("path");

const job = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array,
  int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
};
const NUMPY = {
  float32: "<f4", float64: "<f8", int8: "|i1", uint8: "|u1", int16: "<i2", uint16: "<u2",
  int32: "<i4", uint32: "<u4", int64: "<i8", uint64: "<u8", bool: "|b1",
};
const WARMUP = 2; // as in worker.py

const tell = (found) => fs.appendFileSync(path.join(job.folder, "answers"), JSON.stringify(found) + "\n");
const said = (error) => String((error && error.stack && error.message) || error).slice(0, 8000);
const now = () => Number(process.hrtime.bigint()) / 1e9;

let ort;

function options(profile) {
  const made = { executionProviders: [job.options.provider] };
  if (job.threads !== null) made.intraOpNumThreads = job.threads;
  if (profile) Object.assign(made, { enableProfiling: true, profileFilePrefix: path.join(job.folder, "profile") });
  return made;
}

function batch(start) {
  const feeds = {};
  for (const input of job.inputs) {
    const kind = ARRAYS[input.dtype];
    const one = input.shape.slice(1).reduce((a, b) => a * b, 1);
    const bytes = fs.readFileSync(path.join(job.folder, input.file));
    const all = new kind(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    const part = all.slice(start * one, (start + job.batch) * one);
    feeds[input.name] = new ort.Tensor(input.dtype, part, [job.batch, ...input.shape.slice(1)]);
  }
  return feeds;
}

async function opened(key) {
  const start = now();
  try {
    // The bytes, not the path: the build for browsers has no files.
    const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(job[key])), options(false));
    tell({ [key + "_opened"]: now() - start });
    return session;
  } catch (error) {
    tell({ [key + "_error"]: said(error) });
    return null;
  }
}

async function run(session) {
  const parts = job.outputs.map(() => []);
  const count = job.inputs[0].shape[0], start = now();
  let items = 0, last;
  for (let row = 0; row < count; row += job.batch) {
    last = await session.run(batch(row));
    job.outputs.forEach((name, i) => parts[i].push(Buffer.from(last[name].data.slice().buffer)));
    items += job.batch;
    if (now() - start > job.seconds) break;
  }
  const outputs = job.outputs.map((name, i) => {
    fs.writeFileSync(path.join(job.folder, `output${i}`), Buffer.concat(parts[i]));
    const dims = last[name].dims.map(Number);
    return { name, shape: [parts[i].length * dims[0], ...dims.slice(1)], dtype: NUMPY[last[name].type] };
  });
  tell({ outputs, items });
}

// The profile is a file, or where there are none is written to stdout.
async function kernels() {
  const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(job.model)), options(true));
  await session.run(batch(0));
  const write = fs.writeSync, lines = [];
  fs.writeSync = (fd, data, ...rest) => {
    if (fd !== 1) return write.call(fs, fd, data, ...rest);
    const [offset, length] = typeof rest[0] === "number" ? rest : [0, data.length];
    lines.push(Buffer.from(data).subarray(offset, offset + (length ?? data.length)).toString());
    return length ?? data.length;
  };
  try {
    session.endProfiling();
  } finally {
    fs.writeSync = write;
  }
  const file = fs.readdirSync(job.folder).find((name) => name.startsWith("profile") && name.endsWith(".json"));
  const events = JSON.parse(file ? fs.readFileSync(path.join(job.folder, file), "utf8") : lines.join(""));
  const counts = {};
  for (const event of events) {
    if (event.cat !== "Node" || !event.name.endsWith("_kernel_time")) continue;
    counts[event.args.op_name] = (counts[event.args.op_name] || 0) + 1;
  }
  return counts;
}

async function time(sessions) {
  const feeds = batch(0), taken = Object.fromEntries(Object.keys(sessions).map((name) => [name, []])), start = now();
  for (let turn = 0; turn < WARMUP + job.runs; turn++) {
    for (const [name, session] of Object.entries(sessions)) {
      await session.run(feeds);
      const before = now(), used = process.cpuUsage();
      await session.run(feeds);
      const { user, system } = process.cpuUsage(used);
      taken[name].push([now() - before, (user + system) / 1e6]);
    }
    if (now() - start > job.seconds) break;
  }
  const median = (all) => {
    const sorted = all.sort((a, b) => a - b), half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  };
  for (const [name, all] of Object.entries(taken)) {
    const counted = all.length > WARMUP ? all.slice(WARMUP) : all.slice(-1);
    tell({ [name + "_s"]: median(counted.map(([wall]) => wall)), [name + "_cpu_s"]: median(counted.map(([, cpu]) => cpu)) });
  }
}

setInterval(() => process.ppid !== job.parent && process.exit(1), 500).unref(); // it does not outlive who started it

(async () => {
  ort = require(job.opener);
  ort.env.logLevel = "fatal";
  if (ort.env.wasm && job.threads !== null) ort.env.wasm.numThreads = job.threads;
  const session = await opened("model");
  if (!session) return;
  try {
    await run(session);
  } catch (error) {
    tell({ run_error: said(error) });
    return;
  }
  try {
    tell({ kernels: await kernels() });
  } catch (error) {
    tell({ kernels_error: said(error) });
  }
  if (!job.runs) return;
  const against = job.against ? await opened("against") : null;
  await time(against ? { against, model: session } : { model: session });
})().then(() => process.exit(0), (error) => { tell({ model_error: said(error) }); process.exit(1); });
