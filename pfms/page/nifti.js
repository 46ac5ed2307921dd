/** NIfTI files of the server: fetched, read, and thinned for the screen. */
import { Problem } from './problem.js';

// Where the fields are (nifti1.h, nifti2.h), by the size of the header, with their types.
const LAYOUTS = {
  348: { dim: [40, 'Int16', 2], type: 70, pixdim: [76, 'Float32', 4], offset: [108, 'Float32'], scale: 112, srow: 280 },
  540: { dim: [16, 'BigInt64', 8], type: 12, pixdim: [104, 'Float64', 8], offset: [168, 'BigInt64'], scale: 176, srow: 400 },
};
const ARRAYS = {
  2: Uint8Array,
  4: Int16Array,
  8: Int32Array,
  16: Float32Array,
  64: Float64Array,
  256: Int8Array,
  512: Uint16Array,
  768: Uint32Array,
  1024: BigInt64Array,
  1280: BigUint64Array,
};
const WIDTHS = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array, 8: BigUint64Array };

/** A NIfTI-1 or NIfTI-2 of one volume, in either byte order. */
export class Nifti {
  #view;
  #layout;
  #little;

  /** @param {ArrayBuffer} buffer the file, unpacked */
  constructor(buffer) {
    this.buffer = buffer;
    this.#view = new DataView(buffer);
    this.#little = this.#view.getInt32(0, true) in LAYOUTS;
    this.#layout = LAYOUTS[this.#view.getInt32(0, this.#little)];
    const { dim, pixdim, scale } = this.#layout;
    /** Voxels along each axis. */
    this.shape = [1, 2, 3].map((n) => this.#get(dim, n));
    /** Millimetres from a voxel to the next, along each axis. */
    this.spacing = [1, 2, 3].map((n) => Math.abs(this.#get(pixdim, n)));
    const [, kind, bytes] = pixdim;
    const slope = this.#get([scale, kind, bytes]);
    const scaled = Number.isFinite(slope) && slope !== 0;
    /** A stored value times the slope, plus the intercept, is one in Hounsfield units. */
    this.slope = scaled ? slope : 1;
    this.intercept = scaled ? this.#get([scale, kind, bytes], 1) : 0;
  }

  #get([at, kind, bytes], n = 0) {
    return Number(this.#view[`get${kind}`](at + n * (bytes ?? 0), this.#little));
  }

  get #array() {
    return ARRAYS[this.#view.getInt16(this.#layout.type, this.#little)];
  }

  get #begin() {
    return this.#get(this.#layout.offset);
  }

  get #data() {
    const bytes = this.shape.reduce((a, b) => a * b) * this.#array.BYTES_PER_ELEMENT;
    return new Uint8Array(this.buffer, this.#begin, bytes);
  }

  /** The stored values, in the order of the file: the first axis is the fastest. */
  get voxels() {
    const array = this.#array;
    return as(array, this.#little ? this.#data : swapped(this.#data, array.BYTES_PER_ELEMENT));
  }

  /**
   * Every `steps[n]`th voxel along axis n, from the first one on, where it was.
   *
   * @param {number[]} steps
   * @returns {Nifti}
   */
  thinned(steps) {
    if (steps.every((step) => step === 1)) return this;
    const { dim, pixdim, srow } = this.#layout;
    const all = as(WIDTHS[this.#array.BYTES_PER_ELEMENT], this.#data);
    const [nx, ny, nz] = this.shape;
    const shape = this.shape.map((n, axis) => Math.ceil(n / steps[axis]));
    const kept = new all.constructor(shape.reduce((a, b) => a * b));
    let to = 0;
    for (let z = 0; z < nz; z += steps[2]) {
      for (let y = 0; y < ny; y += steps[1]) {
        const row = (z * ny + y) * nx;
        for (let x = 0; x < nx; x += steps[0]) kept[to++] = all[row + x];
      }
    }
    const begin = this.#begin;
    const buffer = new ArrayBuffer(begin + kept.byteLength);
    new Uint8Array(buffer).set(new Uint8Array(this.buffer, 0, begin));
    new Uint8Array(buffer).set(new Uint8Array(kept.buffer), begin);
    const view = new DataView(buffer);
    const put = ([at, kind, bytes], n, value) => {
      view[`set${kind}`](at + n * bytes, kind.startsWith('Big') ? BigInt(value) : value, this.#little);
    };
    const [, real, bytes] = pixdim;
    for (const [axis, step] of steps.entries()) {
      put(dim, axis + 1, shape[axis]);
      put(pixdim, axis + 1, this.#get(pixdim, axis + 1) * step);
      for (const row of [0, 4, 8]) {
        const column = [srow, real, bytes];
        put(column, row + axis, this.#get(column, row + axis) * step);
      }
    }
    return new Nifti(buffer);
  }
}

/** Bytes as numbers of a type, in the byte order of this machine: little, as in every browser. */
function as(array, bytes) {
  const width = array.BYTES_PER_ELEMENT;
  const { buffer, byteOffset, length } = bytes.byteOffset % width ? bytes.slice() : bytes;
  return new array(buffer, byteOffset, length / width);
}

function swapped(bytes, width) {
  const other = new Uint8Array(bytes.length);
  for (let at = 0; at < bytes.length; at += width) {
    for (let n = 0; n < width; n++) other[at + n] = bytes[at + width - 1 - n];
  }
  return other;
}

/**
 * How a volume is thinned so that it can be drawn: the axis with the finest spacing is halved first.
 *
 * @param {Nifti} volume
 * @param {{voxels: number, side: number}} most in all, and along an axis
 * @returns {number[]} for `thinned`
 */
export function stepsFor({ shape, spacing }, most) {
  const steps = [1, 1, 1];
  for (;;) {
    const sizes = shape.map((n, axis) => Math.ceil(n / steps[axis]));
    const long = sizes.findIndex((n) => n > most.side);
    if (long < 0 && sizes.reduce((a, b) => a * b) <= most.voxels) return steps;
    const distances = spacing.map((mm, axis) => (sizes[axis] > 1 ? mm * steps[axis] : Infinity));
    steps[long < 0 ? distances.indexOf(Math.min(...distances)) : long] *= 2;
  }
}

/**
 * Fetch a gzipped NIfTI.
 *
 * @param api
 * @param {string} path below `/api/v1/`
 * @param {AbortSignal} signal
 * @returns {Promise<Nifti>}
 * @throws {Problem}
 */
export async function fetchNifti(api, path, signal) {
  const { body } = await api.call(path, { signal });
  try {
    const plain = body.pipeThrough(new DecompressionStream('gzip'));
    return new Nifti(await new Response(plain).arrayBuffer());
  } catch {
    signal.throwIfAborted();
    // Browsers unpack one member only; bgzip makes many.
    return fetchMembers(api, path, signal);
  }
}

async function fetchMembers(api, path, signal) {
  const packed = await api.blob(path, { signal });
  try {
    const { Gunzip } = await import('./vendor/fflate.js');
    const pieces = [];
    new Gunzip((piece) => pieces.push(piece)).push(new Uint8Array(await packed.arrayBuffer()), true);
    return new Nifti(await new Blob(pieces).arrayBuffer());
  } catch (error) {
    throw new Problem({
      title: 'This volume is too large for this browser',
      detail: `It could not be unpacked: ${error.message}`,
      remedy: 'Close other tabs, or download the segmentation and look at it with another viewer, such as 3D Slicer.',
    });
  }
}
