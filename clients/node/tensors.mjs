import { endianness } from "node:os";

// The Open Inference Protocol's fixed-size types. JavaScript has no half floats: FP16 and BF16 are their bit patterns.
const ARRAYS = {
  BOOL: Uint8Array,
  UINT8: Uint8Array,
  UINT16: Uint16Array,
  UINT32: Uint32Array,
  UINT64: BigUint64Array,
  INT8: Int8Array,
  INT16: Int16Array,
  INT32: Int32Array,
  INT64: BigInt64Array,
  FP16: Uint16Array,
  BF16: Uint16Array,
  FP32: Float32Array,
  FP64: Float64Array,
};

/**
 * @typedef {Uint8Array | Uint16Array | Uint32Array | BigUint64Array | Int8Array | Int16Array | Int32Array | BigInt64Array
 *   | Float32Array | Float64Array} Elements
 * @typedef {{datatype: string, shape: number[], data: Elements}} Tensor  Row-major; `data` holds product(shape) elements.
 */

/**
 * @param {{datatype: string, shape: number[], data: Buffer}} message
 * @returns {Tensor}
 */
export function decode({ datatype, shape, data }) {
  const Elements = elementsOf(datatype);
  const bytes = inHostOrder(Uint8Array.from(data), Elements.BYTES_PER_ELEMENT); // a copy: a message's bytes may lie unaligned
  return { datatype, shape, data: new Elements(bytes.buffer) };
}

/**
 * @param {Tensor} tensor
 * @returns {{datatype: string, shape: number[], data: Uint8Array}}
 * @throws {RangeError} the shape does not hold the elements
 * @throws {TypeError} the datatype is unknown, or its elements come in another type of array
 */
export function encode({ datatype, shape, data }) {
  const Elements = elementsOf(datatype);
  if (!(data instanceof Elements)) throw new TypeError(`${datatype} elements come in a ${Elements.name}`);
  const size = shape.reduce((product, length) => product * length, 1);
  if (size !== data.length) throw new RangeError(`shape [${shape}] holds ${size} elements, not ${data.length}`);
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return { datatype, shape, data: inHostOrder(bytes, Elements.BYTES_PER_ELEMENT) };
}

/**
 * @param {Tensor} tensor  Of two dimensions.
 * @returns {Elements[]} one view per row
 */
export function rows({ shape: [count, length], data }) {
  return Array.from({ length: count }, (_, row) => data.subarray(row * length, (row + 1) * length));
}

function elementsOf(datatype) {
  const Elements = ARRAYS[datatype];
  if (Elements === undefined) throw new TypeError(`unknown datatype ${datatype}`);
  return Elements;
}

// The wire is little-endian; a conversion there and one back are the same swap.
function inHostOrder(bytes, elementBytes) {
  if (endianness() === "LE" || elementBytes === 1) return bytes;
  return Buffer.from(bytes)[`swap${8 * elementBytes}`]();
}
