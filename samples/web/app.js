// The page: which files are open, which image is shown, and what both networks say about it.
// Names from files and models only ever become text (textContent): nothing of them is parsed as HTML.
import { FormatError, describeModel, quantizedAs, stated } from "./onnx.js";
import { COLORS, INTERPOLATIONS, OptionError, defaultsFor, inputOf, optionsFor, toInput } from "./pixels.js";
import { VERSION } from "./runtime.js";

const SAMPLE = {
  fp32: "../digits.onnx",
  quantized: "digits_w4a4_packed.onnx",
  // Three validation images of each digit.
  images: [
    [3, 8, 12], [14, 17, 24], [0, 1, 13], [2, 10, 15], [6, 11, 26], [19, 21, 27], [31, 36, 42], [7, 22, 25], [4, 5, 9], [29, 39, 49],
  ].flatMap((numbers, digit) => numbers.map((number) => `../val/${digit}/${String(number).padStart(4, "0")}.png`)),
  labels: Array.from({ length: 10 }, (_, digit) => String(digit)),
};
const SLOTS = ["fp32", "quantized"];
const MODEL_NAME = /\.(onnx|ort)$/i;
const LARGEST = 1 << 30; // WebAssembly addresses 4 GB, and the file is in memory more than once
const TIMING_BUDGET = 6000;
const PATIENCE = 120_000;

const $ = (id) => document.getElementById(id);
const field = (slot, name) => $(`card-${slot}`).querySelector(`[data-field="${name}"]`);
const verdict = (name) => $("verdict").querySelector(`[data-field="${name}"]`);

/** What is open: models by slot {name, bytes, metadata, quantized, inputs}, the image, labels. */
const open = { models: {}, image: null, labels: null, input: null, times: null };

/** The worker. It is started anew where a model leaves it broken: an error inside WebAssembly, or no answer. */
class Engine {
  #worker;
  #waiting = new Map();
  #count = 0;

  constructor() {
    this.#start();
  }

  #start() {
    const address = new URL("engine.js", import.meta.url);
    if (new URLSearchParams(location.search).has("local")) address.search = "?local";
    this.#worker = new Worker(address, { type: "module" });
    this.#worker.onmessage = ({ data: { id, result, error } }) => {
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(event.message || "the worker could not be started");
    };
  }

  #fail(message) {
    this.#waiting.forEach(({ reject }) => reject(new Error(message)));
    this.#waiting.clear();
  }

  restart() {
    this.#worker.terminate();
    this.#fail("ended");
    this.#start();
  }

  call(call, given = {}) {
    const id = ++this.#count;
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => this.#waiting.get(id)?.reject(new Error(`no answer within ${PATIENCE / 1000} s`)), PATIENCE);
      const settle = (then) => (value) => {
        clearTimeout(late);
        then(value);
      };
      this.#waiting.set(id, { resolve: settle(resolve), reject: settle(reject) });
      this.#worker.postMessage({ id, call, ...given });
    });
  }
}
const engine = new Engine();

// Saying things

function say(text, state = "working") {
  $("status").textContent = text;
  document.body.dataset.state = state;
}

/** One line about what went wrong; control characters of names and messages are not shown. */
function complain(text) {
  const [line] = text.replace(/[\p{Cc}\p{Cf}]+/gu, "\n").trim().split("\n");
  $("problem").textContent = line.length > 300 ? `${line.slice(0, 300)}…` : line;
  $("problem").hidden = false;
  document.body.dataset.state = "failed";
  $("status").textContent = "";
}

const printable = (name) => name.replace(/[\p{Cc}\p{Cf}]/gu, "�").slice(0, 120);
const megabytes = (bytes) => (bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(2)} MB`);
const milliseconds = (ms) => `${ms >= 100 ? ms.toFixed(0) : ms >= 10 ? ms.toFixed(1) : ms.toFixed(2)} ms`;

function element(name, properties = {}, children = []) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Runs one thing after another, and puts what it throws into one line. */
let last = Promise.resolve();
function inTurn(work) {
  last = last.then(async () => {
    $("problem").hidden = true;
    try {
      await work();
    } catch (error) {
      complain(error.message);
    }
  });
  return last;
}

// Models

/** Why a file did not open, for people. */
function refusal(name, message) {
  if (/dynamically imported|importing a module|no available backend|failed to fetch/i.test(message)) {
    return `onnxruntime-web did not load (${message}). Without a network: npm install --no-save --prefix samples/web onnxruntime-web@${VERSION}, then open this page with ?local`;
  }
  return `onnxruntime-web ${VERSION} does not open ${name}: ${message.replace(/^.*ERROR_MESSAGE: /s, "")}`;
}

function describe(bytes, name) {
  try {
    return describeModel(bytes);
  } catch (error) {
    if (error instanceof FormatError) throw new Error(`${name} is not an ONNX model: ${error.message}`);
    throw error;
  }
}

async function openModel(slot, name, buffer) {
  const bytes = new Uint8Array(buffer), shown = printable(name);
  const { metadata } = describe(bytes, shown);
  const quantized = quantizedAs(metadata);
  if (quantized?.container === "typed") {
    // Not tried: its optimizer reads beyond such tensors, and then fails, never ends, or opens the file by luck (docs/deployment.md 4).
    throw new Error(`${shown} holds codes in 4-bit types (container typed), which onnxruntime-web ${VERSION} cannot be trusted with: ` +
      "mrecg-onnx convert FILE --container packed makes one that it can");
  }
  say(`Opening ${shown} …`);
  let ios;
  try {
    ios = await engine.call("open", { slot, bytes: buffer });
  } catch (error) {
    await reopen();
    throw new Error(refusal(shown, error.message));
  }
  open.models[slot] = { name: shown, size: bytes.length, buffer, metadata, quantized, ...ios, input: inputOf(ios.inputs) };
  open.times = null;
  showModel(slot);
}

/** A fresh worker with the models that were open before. */
async function reopen() {
  engine.restart();
  for (const slot of ready()) await engine.call("open", { slot, bytes: open.models[slot].buffer });
}

function showModel(slot) {
  const { name, size, quantized } = open.models[slot];
  $(`name-${slot}`).textContent = name;
  field(slot, "size").textContent = megabytes(size);
  field(slot, "time").textContent = "–";
  field(slot, "top").replaceChildren();
  if (slot === "quantized") field(slot, "kind").textContent = quantized ? `${quantized.bits} ${quantized.container}` : "Quantized";
}

/** The model that says how images become inputs: the quantized one, where it does. */
function fillOptions() {
  const said = SLOTS.toReversed().map((slot) => [slot, stated(open.models[slot]?.metadata ?? new Map(), "mrecg_onnx.preprocess")]).find(([, found]) => found);
  open.input = (open.models.quantized ?? open.models.fp32).input;
  const defaults = defaultsFor(open.input, said?.[1]);
  for (const [name, value] of Object.entries(defaults)) $(name).value = value;
  $("options-source").textContent = said
    ? `From the metadata of ${open.models[said[0]].name}, layout ${open.input.layout.toUpperCase()}.`
    : `No metadata of mrecg-onnx: ImageNet's numbers, layout ${open.input.layout.toUpperCase()} from the model.`;
}

function options() {
  const entered = Object.fromEntries(new FormData($("options")));
  try {
    return optionsFor(open.input, entered);
  } catch (error) {
    if (error instanceof OptionError) $("own").open = true;
    throw error;
  }
}

// Images

/** Pixels as they are in the file: no colour management, upright. */
async function decode(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error(`${printable(name)} is no image that this browser reads`);
  }
  const canvas = element("canvas", { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { name: printable(name), data: context.getImageData(0, 0, canvas.width, canvas.height) };
}

function prepared(image) {
  const chosen = options();
  const { values, shown } = toInput(image.data, chosen);
  const { batch, layout, channels, size } = chosen;
  const repeated = new values.constructor(values.length * batch);
  for (let i = 0; i < batch; i++) repeated.set(values, i * values.length);
  return { shown, given: { values: repeated, dims: [batch, ...(layout === "nchw" ? [channels, ...size] : [...size, channels])] } };
}

// Results

/** The class scores of the first image: the first output with a row for each image. */
function scores(outputs) {
  const found = outputs.find(({ dims, data }) => data.length / (dims[0] || 1) > 1);
  return found ? found.data.subarray(0, found.data.length / found.dims[0]) : null;
}

function chances(values) {
  const sum = values.reduce((a, b) => a + b, 0);
  if (values.every((v) => v >= 0 && v <= 1) && Math.abs(sum - 1) < 1e-3) return Array.from(values);
  const top = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Array.from(values, (v) => Math.exp(v - top));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((p) => p / total);
}

const topOf = (values, count = 5) => Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b).slice(0, count);
const label = (index) => open.labels?.[index] ?? `class ${index}`;

function showTop(slot, values) {
  const list = field(slot, "top");
  if (!values) {
    list.replaceChildren(element("li", { textContent: "no output with class scores" }));
    return;
  }
  const parts = chances(values);
  list.replaceChildren(...topOf(values).map((index) => element("li", {}, [
    element("progress", { max: 1, value: parts[index], ariaHidden: "true" }),
    element("span", { className: "label", textContent: label(index), title: label(index) }),
    element("span", { className: "chance", textContent: `${(100 * parts[index]).toFixed(1)}%` }),
  ])));
}

/** 10 log10 of the signal's energy over that of the difference. */
function sqnr(exact, found) {
  let signal = 0, noise = 0;
  exact.forEach((value, i) => {
    signal += value * value;
    noise += (value - found[i]) ** 2;
  });
  return noise === 0 ? Infinity : 10 * Math.log10(signal / noise);
}

const median = (values) => {
  const sorted = values.toSorted((a, b) => a - b), middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

const ready = () => SLOTS.filter((slot) => open.models[slot]);
const both = () => ready().length === SLOTS.length;

function showVerdict(found) {
  const entries = { agree: "–", sqnr: "–", ratio: "–", bytes: "–" };
  if (both()) {
    entries.bytes = `${(open.models.quantized.size / open.models.fp32.size).toFixed(2)}×`;
    const [exact, got] = SLOTS.map((slot) => found[slot] && scores(found[slot]));
    if (exact && got && exact.length === got.length) {
      entries.agree = topOf(exact, 1)[0] === topOf(got, 1)[0] ? "yes" : "no";
      const decibels = sqnr(exact, got);
      entries.sqnr = decibels === Infinity ? "equal" : `${decibels.toFixed(1)} dB`;
    } else {
      entries.agree = "other outputs";
    }
    // Samples taken next to each other are compared, so that a busy moment slows both.
    if (open.times) entries.ratio = `${median(open.times.quantized.map((ms, i) => ms / open.times.fp32[i])).toFixed(2)}×`;
  }
  for (const [name, text] of Object.entries(entries)) verdict(name).textContent = text;
}

function showTimes() {
  for (const slot of ready()) {
    const sorted = open.times[slot].toSorted((a, b) => a - b), last = sorted.length - 1;
    const spread = `${milliseconds(sorted[Math.round(0.1 * last)]).replace(" ms", "")} to ${milliseconds(sorted[Math.round(0.9 * last)])}`;
    field(slot, "time").replaceChildren(`${milliseconds(median(sorted))} `, element("small", { textContent: spread, title: "10 to 90 %" }));
  }
  $("method").textContent = `Time: median and 10 to 90 % of ${open.times[ready()[0]].length} samples behind a warm-up, both networks in turn, in WebAssembly on one thread. ` +
    "Time against FP32: median of the samples' ratios. Probabilities: softmax of the outputs, or the outputs where they are probabilities.";
}

async function classify({ timed = true } = {}) {
  const { shown, given } = prepared(open.image);
  const canvas = $("fed");
  [canvas.width, canvas.height] = [shown.width, shown.height];
  canvas.classList.toggle("pixelated", shown.width < 112);
  canvas.getContext("2d").putImageData(shown, 0, 0);
  canvas.ariaLabel = `${open.image.name} as the networks see it, ${shown.width} by ${shown.height} pixels`;
  $("fed-caption").textContent = `${shown.width} × ${shown.height}`;
  say(`Classifying ${open.image.name} …`);
  const found = await engine.call("run", { slots: ready(), ...given });
  for (const slot of ready()) showTop(slot, scores(found[slot]));
  showVerdict(found);
  if (timed || !open.times) {
    say("Measuring time …");
    open.times = await engine.call("time", { slots: ready(), ...given, budget: TIMING_BUDGET });
    showTimes();
    showVerdict(found);
  }
  const [first] = ready();
  const said = ready().map((slot) => scores(found[slot])).filter(Boolean).map((values) => label(topOf(values, 1)[0]));
  say(said.length === 2 ? `${open.image.name}: FP32 says ${said[0]}, quantized says ${said[1]}.` : `${open.image.name}: ${said[0] ?? first}.`, "done");
}

/** Top-1 of both networks on many images: how often they agree, and how often they are right where that is known. */
async function classifyAll(images, expected) {
  const right = { fp32: 0, quantized: 0 };
  const differing = [];
  let same = 0;
  for (const [number, image] of images.entries()) {
    say(`Classifying image ${number + 1} of ${images.length} …`);
    const found = await engine.call("run", { slots: SLOTS, ...prepared(image).given });
    const [a, b] = SLOTS.map((slot) => topOf(scores(found[slot]) ?? [], 1)[0]);
    if (a === b) same++;
    else differing.push(number);
    if (a === expected?.[number]) right.fp32++;
    if (b === expected?.[number]) right.quantized++;
  }
  const correct = expected ? ` Right: FP32 ${right.fp32}, quantized ${right.quantized}.` : "";
  return { differing, text: `Same top-1 on ${same} of ${images.length} images.${correct}` };
}

// The sample

async function fetched(path) {
  const response = await fetch(new URL(path, import.meta.url));
  if (!response.ok) throw new Error(`${path} is not there (${response.status}): serve the folder samples/, not samples/web/`);
  return response;
}

const nameOf = (path) => path.split("/").slice(-2).join("/").replace(/^\.\.\//, "");

async function showSampleImage(path, { timed = false } = {}) {
  open.image = await decode(await (await fetched(path)).blob(), nameOf(path));
  press(path);
  await classify({ timed });
}

function press(path) {
  for (const button of $("thumbs").querySelectorAll("button")) button.ariaPressed = String(button.dataset.path === path);
}

async function openSample() {
  const buffers = await Promise.all(SLOTS.map(async (slot) => (await fetched(SAMPLE[slot])).arrayBuffer()));
  for (const [i, slot] of SLOTS.entries()) await openModel(slot, nameOf(SAMPLE[slot]), buffers[i]);
  open.labels = SAMPLE.labels;
  $("samples").hidden = false;
  fillOptions();
  await showSampleImage(SAMPLE.images[0], { timed: true });
  $("all").disabled = false;
}

function buildThumbs() {
  $("thumbs").replaceChildren(...SAMPLE.images.map((path, number) => {
    const digit = Math.floor(number / 3);
    const image = element("img", { src: new URL(path, import.meta.url).href, alt: "", width: 32, height: 32, loading: "lazy" });
    const button = element("button", { type: "button", ariaLabel: `A handwritten ${digit}, number ${(number % 3) + 1}`, ariaPressed: "false" }, [image]);
    button.dataset.path = path;
    button.addEventListener("click", () => inTurn(() => showSampleImage(path)));
    return element("li", {}, [button]);
  }));
}

async function compareSample() {
  const images = [];
  for (const path of SAMPLE.images) images.push(await decode(await (await fetched(path)).blob(), nameOf(path)));
  const { differing, text } = await classifyAll(images, SAMPLE.images.map((_, i) => Math.floor(i / 3)));
  const buttons = [...$("thumbs").querySelectorAll("button")];
  buttons.forEach((button, i) => button.classList.toggle("differs", differing.includes(i)));
  say(differing.length ? `${text} Framed in red: where they differ.` : text, "done");
}

// Files of the user

function setLabels(text) {
  const lines = text.split(/\r?\n/);
  while (lines.length && !lines.at(-1).trim()) lines.pop();
  open.labels = lines.slice(0, 100_000).map((line) => printable(line.trim()));
}

/** Which slot a model goes to: what mrecg-onnx wrote is quantized; of two other files the larger one is FP32. */
async function place(files) {
  const read = [];
  for (const file of files) {
    if (file.size > LARGEST) throw new Error(`${printable(file.name)} is larger than 1 GB: too much for this page`);
    const buffer = await file.arrayBuffer();
    read.push({ file, buffer, ours: quantizedAs(describe(new Uint8Array(buffer), printable(file.name)).metadata) !== null });
  }
  if (read.length > 2) throw new Error("drop at most two models: a float one and a quantized one");
  if (read.length === 2 && read[0].ours === read[1].ours) {
    const [large, small] = read.toSorted((a, b) => b.file.size - a.file.size);
    return { fp32: large, quantized: small };
  }
  return Object.fromEntries(read.map((entry) => [entry.ours ? "quantized" : "fp32", entry]));
}

/** Networks of two makers are not compared: the sample's other one leaves where only one of a pair is dropped and does not fit it. */
function forget(slot) {
  delete open.models[slot];
  $(`name-${slot}`).textContent = slot === "fp32" ? "Drop its FP32 file, too" : "Drop its quantized file, too";
  for (const name of ["size", "time"]) field(slot, name).textContent = "–";
  field(slot, "top").replaceChildren();
}

/** Whether two models take and give the same. */
function fitting(...models) {
  const [a, b] = models.map(({ input, outputs }) => JSON.stringify([input, outputs.map(({ shape }) => shape.length && shape.at(-1))]));
  return a === b;
}

async function openModels(placed) {
  const entries = Object.entries(placed);
  if (!entries.length) return;
  $("all").disabled = true;
  for (const [slot, { file, buffer }] of entries) await openModel(slot, file.name, buffer);
  if (entries.length === 1) {
    const [[slot]] = entries, other = SLOTS.find((s) => s !== slot);
    if (open.models[other] && !fitting(open.models[slot], open.models[other])) forget(other);
  }
  $("samples").hidden = !SLOTS.every((slot) => open.models[slot]?.name === nameOf(SAMPLE[slot]));
  if ($("samples").hidden && open.labels === SAMPLE.labels) open.labels = null;
  fillOptions();
  $("own").open = true;
}

async function take(files, slot) {
  const models = files.filter((file) => MODEL_NAME.test(file.name));
  const texts = files.filter((file) => /\.txt$/i.test(file.name));
  const images = files.filter((file) => !models.includes(file) && !texts.includes(file));
  const placed = slot && models.length ? { [slot]: { file: models[0], buffer: await models[0].arrayBuffer() } } : await place(models);
  await openModels(placed);
  if (texts.length) setLabels(await texts[0].text());
  const decoded = [];
  for (const file of images) decoded.push(await decode(file, file.name));
  if (decoded.length) {
    open.image = decoded[0];
    press(null);
  }
  await classify({ timed: models.length > 0 });
  if (decoded.length > 1 && both()) say((await classifyAll(decoded)).text, "done");
}

function listen() {
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      document.body.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    const files = [...event.dataTransfer.files];
    if (files.length) inTurn(() => take(files));
  });
  const pickers = { "pick": undefined, "pick-fp32": "fp32", "pick-quantized": "quantized", "pick-labels": undefined };
  for (const [id, slot] of Object.entries(pickers)) {
    $(id).addEventListener("change", ({ target }) => {
      const files = [...target.files];
      if (files.length) inTurn(() => take(files, slot));
      target.value = "";
    });
  }
  $("options").addEventListener("submit", (event) => {
    event.preventDefault();
    inTurn(() => classify());
  });
  $("back").addEventListener("click", () => inTurn(openSample));
  $("all").addEventListener("click", () => inTurn(compareSample));
}

function fillSelect(id, values) {
  $(id).replaceChildren(...values.map((value) => element("option", { value, textContent: value })));
}

fillSelect("interpolation", INTERPOLATIONS);
fillSelect("color", COLORS);
$("version").textContent = VERSION;
buildThumbs();
listen();
say("Loading onnxruntime-web …");
inTurn(async () => {
  try {
    await engine.call("load");
  } catch (error) {
    throw new Error(refusal("the model", error.message));
  }
  await openSample();
});
