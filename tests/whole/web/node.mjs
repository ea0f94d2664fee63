// usage: node node.mjs PACKAGE NODE_MODULES MODEL.onnx INPUT.bin OUTPUT.bin DIM...; runs a model of one input on one thread.
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [name, modules, model, input, output, ...dims] = process.argv.slice(2);
const ort = createRequire(path.join(modules, "x.js"))(name);
ort.env.logLevel = "error";
if (name === "onnxruntime-web") ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(model, { intraOpNumThreads: 1 });
const bytes = fs.readFileSync(input);
const x = new ort.Tensor("float32", new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4), dims.map(Number));
const { data } = (await session.run({ [session.inputNames[0]]: x }))[session.outputNames[0]];
fs.writeFileSync(output, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
process.exit(0);
