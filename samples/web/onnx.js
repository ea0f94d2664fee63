// What an .onnx file says about itself, read without the runtime: the few fields of ModelProto (onnx.proto) that the page shows.

const OPSET_IMPORT = 8;
const METADATA_PROPS = 14;
const VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5;

/** A file that is no protocol buffer, or no model. */
export class FormatError extends Error {}

/** Yields [field number, value] of one message; values are numbers or views of `bytes`. Lengths are checked against what is there. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0, factor = 1;
    for (let count = 0; count < 10; count++) {
      if (at >= bytes.length) throw new FormatError("the file ends too early");
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
      factor *= 128;
    }
    throw new FormatError("a number is too long");
  };
  const take = (length) => {
    if (length > bytes.length - at) throw new FormatError("the file ends too early");
    at += length;
    return bytes.subarray(at - length, at);
  };
  while (at < bytes.length) {
    const tag = varint(), kind = tag % 8, number = Math.floor(tag / 8);
    if (number === 0) throw new FormatError("field number 0");
    if (kind === VARINT) yield [number, varint()];
    else if (kind === BYTES) yield [number, take(varint())];
    else if (kind === FIXED64) yield [number, take(8)];
    else if (kind === FIXED32) yield [number, take(4)];
    else throw new FormatError(`wire type ${kind}`);
  }
}

const text = (bytes) => new TextDecoder().decode(bytes);

/** Key and value of a StringStringEntryProto. */
function entry(bytes) {
  const found = { 1: "", 2: "" };
  for (const [number, value] of fields(bytes)) if (number in found && value instanceof Uint8Array) found[number] = text(value);
  return [found[1], found[2]];
}

/**
 * Opset of the standard domain (0 where none is stated) and metadata_props as a Map.
 * ONNX Runtime's own format (.ort, a flatbuffer) says nothing here.
 */
export function describeModel(bytes) {
  const metadata = new Map();
  if (text(bytes.subarray(4, 8)) === "ORTM") return { opset: 0, metadata };
  let opset = 0;
  for (const [number, value] of fields(bytes)) {
    if (number === METADATA_PROPS && value instanceof Uint8Array) metadata.set(...entry(value));
    if (number === OPSET_IMPORT && value instanceof Uint8Array) {
      const parts = Object.fromEntries(fields(value));
      if (!parts[1]?.length && typeof parts[2] === "number") opset = parts[2];
    }
  }
  return { opset, metadata };
}

/** The JSON of one metadata entry, undefined where it is missing or cannot be read. */
export function stated(metadata, key) {
  try {
    return JSON.parse(metadata.get(key) ?? "null") ?? undefined;
  } catch {
    return undefined;
  }
}

/** What `mrecg-onnx quantize` wrote about a file: null for files of other tools. */
export function quantizedAs(metadata) {
  if (!metadata.has("mrecg_onnx.version")) return null;
  const settings = stated(metadata, "mrecg_onnx.settings") ?? {};
  const container = stated(metadata, "mrecg_onnx.container")?.name ?? "int8";
  const width = (bits) => (Number.isInteger(bits) ? String(bits) : "?");
  return { bits: `W${width(settings.wbits)}A${width(settings.abits)}`, container: String(container) };
}
