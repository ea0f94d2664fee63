// Drives samples/web in an iframe, or its modules, and posts what it saw to the test's server. `?do=NAME` says which.
import { describeModel } from "/samples/web/onnx.js";
import { toInput } from "/samples/web/pixels.js";

const frame = document.getElementById("page");
const text = (selector) => frame.contentDocument.querySelector(selector).textContent.trim();
const texts = (selector) => [...frame.contentDocument.querySelectorAll(selector)].map((found) => found.textContent.trim());

async function settled() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    const body = frame.contentDocument?.body;
    if (body && ["done", "failed"].includes(body.dataset.state)) return;
  }
}

async function opened() {
  frame.src = "/samples/web/index.html?local";
  await new Promise((resolve) => { frame.onload = resolve; });
  await settled();
}

/** Does something, and waits until the page has dealt with it. */
async function after(act) {
  frame.contentDocument.body.dataset.state = "asked";
  act();
  await settled();
}

async function file(path, name) {
  return new File([await (await fetch(path)).blob()], name);
}

const drop = (files) => after(() => {
  const data = new frame.contentWindow.DataTransfer();
  files.forEach((dropped) => data.items.add(dropped));
  frame.contentDocument.dispatchEvent(new frame.contentWindow.DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
});

function seen() {
  const cards = ["fp32", "quantized"].map((slot) => [slot, {
    name: text(`#name-${slot}`), kind: text(`#card-${slot} .tag`), size: text(`#card-${slot} [data-field=size]`),
    time: text(`#card-${slot} [data-field=time]`), top: texts(`#card-${slot} .label`), chances: texts(`#card-${slot} .chance`),
  }]);
  const { document: page } = frame.contentWindow;
  return {
    ...Object.fromEntries(cards), state: page.body.dataset.state, status: text("#status"), problem: text("#problem"),
    problemShown: !page.getElementById("problem").hidden, verdict: texts("#verdict dd"), options: Object.fromEntries(new FormData(page.getElementById("options"))),
    unnamed: [...page.querySelectorAll("button, input, select")].filter((e) => !e.labels?.length && !e.ariaLabel && !e.textContent.trim()).map((e) => e.id),
    foreign: page.querySelectorAll("#results img, #results b, #own img, #own b").length, own: "ran" in frame.contentWindow,
    width: page.documentElement.scrollWidth,
  };
}

function base64(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let found = "";
  for (const byte of bytes) found += String.fromCharCode(byte);
  return btoa(found);
}

async function pixelsOf(path) {
  const bitmap = await createImageBitmap(await (await fetch(path)).blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

/** One call of the page's worker. */
function asker() {
  const worker = new Worker("/samples/web/engine.js?local", { type: "module" });
  return (call, given) => new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data.error === undefined ? resolve(data.result) : reject(new Error(data.error)));
    worker.postMessage({ id: 0, call, ...given });
  });
}

const TESTS = {
  async sample() {
    await opened();
    const first = seen();
    await after(() => frame.contentDocument.getElementById("all").click());
    return { first, all: seen() };
  },
  async phone() {
    frame.width = 340;
    await opened();
    return seen();
  },
  async dropped({ files, options }) {
    await opened();
    await drop(await Promise.all(files.map(([path, name]) => file(path, name))));
    const dropped = seen();
    if (options) {
      for (const [name, value] of Object.entries(options)) frame.contentDocument.getElementById(name).value = value;
      await after(() => frame.contentDocument.getElementById("options").requestSubmit());
    }
    return { dropped, again: seen() };
  },
  async pixels({ image, options }) {
    const data = await pixelsOf(image);
    return options.map((one) => base64(toInput(data, one).values));
  },
  async outputs({ model, values, dims }) {
    const ask = asker(), bytes = await (await fetch(model)).arrayBuffer();
    await ask("open", { slot: "quantized", bytes });
    const input = new Float32Array(await (await fetch(values)).arrayBuffer());
    const { quantized } = await ask("run", { slots: ["quantized"], values: input, dims });
    return quantized.map(({ name, dims: shape, data }) => ({ name, dims: shape, data: base64(data) }));
  },
  async metadata({ models }) {
    return Promise.all(models.map(async (model) => {
      try {
        const { opset, metadata } = describeModel(new Uint8Array(await (await fetch(model)).arrayBuffer()));
        return { opset, metadata: Object.fromEntries(metadata) };
      } catch (error) {
        return { error: error.message, kind: error.constructor.name };
      }
    }));
  },
};

async function report(found) {
  await fetch("/report", { method: "POST", body: JSON.stringify(found) });
}
try {
  const { name, given } = await (await fetch("/task")).json();
  await report({ found: await TESTS[name](given) });
} catch (error) {
  await report({ error: `${error.message}\n${error.stack}` });
}
