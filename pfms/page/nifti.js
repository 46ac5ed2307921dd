/** NIfTI files of the server, as they are unpacked. */

/**
 * Fetch a gzipped NIfTI.
 *
 * @param api
 * @param {string} path below `/api/v1/`
 * @param {AbortSignal} signal
 * @returns {Promise<ArrayBuffer>} the NIfTI, unpacked
 * @throws {Problem}
 */
export async function fetchNifti(api, path, signal) {
  const packed = await api.blob(path, { signal });
  try {
    const plain = packed.stream().pipeThrough(new DecompressionStream('gzip'));
    return await new Response(plain).arrayBuffer();
  } catch (error) {
    // Browsers unpack one member only; bgzip makes many.
    if (error instanceof TypeError) return unpackMembers(await packed.arrayBuffer());
    throw error;
  }
}

async function unpackMembers(packed) {
  const { Gunzip } = await import('./vendor/fflate.js');
  const pieces = [];
  new Gunzip((piece) => pieces.push(piece)).push(new Uint8Array(packed), true);
  return new Blob(pieces).arrayBuffer();
}
