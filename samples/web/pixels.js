// Pixels become numbers as in `mrecg-onnx quantize` and `validate`: Pillow's resizing in 8 bits, torchvision's sizes and centre crop,
// then (pixel * scale - mean) / std. The same file gives the same numbers here and there, bit for bit, where browser and Pillow
// decode it alike (PNG without transparency does).

/** What someone typed, or a file says, that cannot be used. */
export class OptionError extends Error {}

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

/** Pillow's filters: how far each reaches, and its weight there (src/libImaging/Resample.c). */
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => {
    const z = Math.abs(x);
    return z === 0 ? 1 : z >= 1 ? 0 : (Math.sin(z * Math.PI) / (z * Math.PI)) * (0.54 + 0.46 * Math.cos(z * Math.PI));
  }],
  bicubic: [2, (x) => {
    const z = Math.abs(x), a = -0.5;
    return z < 1 ? ((a + 2) * z - (a + 3)) * z * z + 1 : z < 2 ? (((z - 5) * z + 8) * z - 4) * a : 0;
  }],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
export const INTERPOLATIONS = ["nearest", ...Object.keys(FILTERS)];
export const COLORS = ["rgb", "bgr", "gray"];

const PRECISION = 22;
const MAX_SIDE = 4096;
const MAX_RESIZED_PIXELS = 2 ** 27;
const IMAGENET = { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

/** First source pixel and integer weights (2^-22) of every pixel of one axis. */
function weights(size, out, [reach, filter]) {
  const scale = size / out, stretch = Math.max(scale, 1), support = reach * stretch;
  return Array.from({ length: out }, (_, place) => {
    const center = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(size, Math.trunc(center + support + 0.5));
    const found = [];
    for (let x = first; x < last; x++) found.push(filter((x - center + 0.5) * (1 / stretch)));
    const sum = found.reduce((a, b) => a + b, 0);
    return [first, Int32Array.from(found, (w) => Math.trunc((w / sum) * 2 ** PRECISION + (w < 0 ? -0.5 : 0.5)))];
  });
}

/** One pass of Pillow's resizing: lines of `size` values, `step` apart, become lines of `out`. */
function pass(source, target, table, lines, lineStep, step, outLineStep, outStep) {
  table.forEach(([first, taps], place) => {
    for (let line = 0; line < lines; line++) {
      let sum = 2 ** (PRECISION - 1), at = line * lineStep + first * step;
      for (let i = 0; i < taps.length; i++, at += step) sum += source[at] * taps[i];
      target[line * outLineStep + place * outStep] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** PRECISION)));
    }
  });
}

/** A plane of 8-bit values in another size. */
function resized(plane, width, height, outWidth, outHeight, name) {
  if (name === "nearest") {
    const xs = Array.from({ length: outWidth }, (_, x) => Math.floor((x + 0.5) * (width / outWidth)));
    const found = new Uint8Array(outWidth * outHeight);
    for (let y = 0; y < outHeight; y++) {
      const row = Math.floor((y + 0.5) * (height / outHeight)) * width;
      xs.forEach((x, place) => { found[y * outWidth + place] = plane[row + x]; });
    }
    return found;
  }
  let found = plane;
  if (outWidth !== width) {
    found = new Uint8Array(outWidth * height);
    pass(plane, found, weights(width, outWidth, FILTERS[name]), height, width, 1, outWidth, 1);
  }
  if (outHeight !== height) {
    const before = found;
    found = new Uint8Array(outWidth * outHeight);
    pass(before, found, weights(height, outHeight, FILTERS[name]), outWidth, 1, outWidth, 1, outWidth);
  }
  return found;
}

/** Python's round(): halves go to the even number. */
function round(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2 === 0 ? 0 : 1) : Math.round(x);
}

/** The smallest size of the same proportions that covers the box, rounded as torchvision's Resize does. */
function cover(width, height, boxWidth, boxHeight) {
  if (width * boxHeight <= height * boxWidth) return [boxWidth, Math.max(boxHeight, Math.trunc((boxWidth * height) / width))];
  return [Math.max(boxWidth, Math.trunc((boxHeight * width) / height)), boxHeight];
}

/** The size that an image is brought to before the crop. */
function resizeTo(width, height, { resize, size: [cropHeight, cropWidth] }) {
  if (resize === "off" || (resize === null && width === cropWidth && height === cropHeight)) return [width, height];
  if (Array.isArray(resize)) return [resize[1], resize[0]];
  const box = [cropWidth, cropHeight].map((side) => (resize === null ? round(side / 0.875) : Math.max(resize, side)));
  return cover(width, height, ...box);
}

/** Planes of the colours in the model's order. */
function planes({ data, width, height }, color) {
  const plane = (value) => {
    const found = new Uint8Array(width * height);
    for (let i = 0; i < found.length; i++) found[i] = value(4 * i);
    return found;
  };
  if (color === "gray") return [plane((i) => (data[i] * 19595 + data[i + 1] * 38470 + data[i + 2] * 7471 + 0x8000) >> 16)];
  const found = [0, 1, 2].map((channel) => plane((i) => data[i + channel]));
  return color === "bgr" ? found.reverse() : found;
}

/**
 * An ImageData as the input of a model.
 *
 * @param image ImageData, 8 bits.
 * @param options of optionsFor(): size [height, width], resize, interpolation, color, channels, layout, scale, mean, std.
 * @returns Float32Array (or Uint8Array for a model of bytes) of one image, and the pixels fed, as ImageData.
 */
export function toInput(image, options) {
  const { size: [height, width], channels, mean, std, scale, layout, interpolation } = options;
  const [midWidth, midHeight] = resizeTo(image.width, image.height, options);
  if (midWidth * midHeight > MAX_RESIZED_PIXELS) throw new OptionError("the image is too long and thin to resize");
  const left = round((midWidth - width) / 2), top = round((midHeight - height) / 2);
  const found = planes(image, options.color).map((plane) => {
    const whole = resized(plane, image.width, image.height, midWidth, midHeight, interpolation);
    const cut = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const [sx, sy] = [x + left, y + top];
        if (sx >= 0 && sy >= 0 && sx < midWidth && sy < midHeight) cut[y * width + x] = whole[sy * midWidth + sx];
      }
    }
    return cut;
  });
  while (found.length < channels) found.push(found[0]);
  const values = options.bytes ? new Uint8Array(channels * width * height) : new Float32Array(channels * width * height);
  found.forEach((plane, channel) => {
    const table = Float64Array.from({ length: 256 }, (_, p) => (options.bytes ? p : (p * scale - mean[channel]) / std[channel]));
    plane.forEach((pixel, i) => { values[layout === "nchw" ? channel * plane.length + i : i * channels + channel] = table[pixel]; });
  });
  const [red, green, blue] = options.color === "bgr" ? [2, 1, 0] : found.length === 3 ? [0, 1, 2] : [0, 0, 0];
  const shown = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) shown.data.set([found[red][i], found[green][i], found[blue][i], 255], 4 * i);
  return { values, shown };
}

const numbers = (entered) => String(entered).split(/[\s,]+/).filter(Boolean).map(Number);

/** `256x320` as [256, 320], `256` as [256, 256]. */
function sides(name, entered) {
  const found = String(entered).toLowerCase().split("x").map((part) => (part.trim() === "" ? NaN : Number(part)));
  const size = found.length === 1 ? [found[0], found[0]] : found;
  if (size.length !== 2 || !size.every((n) => Number.isInteger(n) && n > 0 && n <= MAX_SIDE)) {
    throw new OptionError(`${name}: a height and a width up to ${MAX_SIDE}, such as 224x224`);
  }
  return size;
}

function perChannel(name, entered, channels) {
  const found = numbers(entered);
  if (!found.length || !found.every(Number.isFinite) || ![1, channels].includes(found.length)) {
    throw new OptionError(`${name}: one number, or one for each of the ${channels} channels`);
  }
  if (name === "Std" && found.some((n) => n <= 0)) throw new OptionError("Std: above 0");
  return found.length === channels ? found : Array(channels).fill(found[0]);
}

/** Axis order, channels and size of a model's only image input. */
export function inputOf(inputs) {
  if (inputs.length !== 1) throw new OptionError(`the model has ${inputs.length} inputs, the page feeds one image`);
  const [{ type, shape }] = inputs;
  if (type !== "float32" && type !== "uint8") throw new OptionError(`the model takes ${type}, the page feeds float32 or uint8`);
  if (shape.length !== 4) throw new OptionError("the model's input has not the 4 axes of images");
  const counts = [1, 3];
  const layout = counts.includes(shape[1]) || typeof shape[1] !== "number" ? "nchw" : counts.includes(shape[3]) ? "nhwc" : "";
  if (!layout) throw new OptionError("the model's input has neither 1 nor 3 channels");
  const [channels, height, width] = layout === "nchw" ? shape.slice(1) : [shape[3], shape[1], shape[2]];
  const known = (n) => (Number.isInteger(n) && n > 0 ? n : null);
  const batch = known(shape[0]) ?? 1;
  return { layout, batch, channels: known(channels) ?? 3, size: [known(height), known(width)], bytes: type === "uint8" };
}

/** The form's entries for a model, from its file's metadata where that says, else ImageNet's. */
export function defaultsFor(input, said = {}) {
  const list = (value, otherwise) => (Array.isArray(value) ? value.join(", ") : otherwise.join(", "));
  const mean = input.channels === 3 ? IMAGENET.mean : [0.449], std = input.channels === 3 ? IMAGENET.std : [0.226];
  const size = Array.isArray(said.crop) ? said.crop : input.size.map((n) => n ?? 224);
  const resize = said.resize ?? "auto";
  return {
    size: size.join("x"), resize: Array.isArray(resize) ? resize.join("x") : String(resize),
    interpolation: INTERPOLATIONS.includes(said.interpolation) ? said.interpolation : "bilinear",
    color: COLORS.includes(said.color) ? said.color : input.channels === 1 ? "gray" : "rgb",
    scale: said.scale === undefined || Math.abs(said.scale - 1 / 255) < 1e-9 ? "1/255" : String(said.scale),
    mean: list(said.mean, mean), std: list(said.std, std),
  };
}

/** Checked options of toInput() from the form's entries. */
export function optionsFor(input, form) {
  const size = sides("Size", form.size);
  input.size.forEach((side, axis) => {
    if (side !== null && side !== size[axis]) throw new OptionError(`Size: the model takes ${input.size.join("x")}`);
  });
  const entered = form.resize.trim().toLowerCase();
  let resize = entered === "auto" || entered === "" ? null : entered === "off" ? "off" : sides("Resize", entered);
  if (Array.isArray(resize) && !entered.includes("x")) resize = resize[0];
  const short = Array.isArray(resize) ? resize.some((n, axis) => n < size[axis]) : typeof resize === "number" && resize < Math.min(...size);
  if (short) throw new OptionError("Resize: not smaller than the size");
  if (form.color !== "gray" && input.channels === 1) throw new OptionError("Colour: the model has one channel, gray");
  const scale = form.scale.trim() === "1/255" ? 1 / 255 : Number(form.scale);
  if (!Number.isFinite(scale) || scale <= 0) throw new OptionError("Scale: a number above 0, or 1/255");
  return {
    ...input, size, resize, scale, interpolation: form.interpolation, color: form.color,
    mean: perChannel("Mean", form.mean, input.channels), std: perChannel("Std", form.std, input.channels),
  };
}
