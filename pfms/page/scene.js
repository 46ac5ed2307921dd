/** NiiVue, as this page uses it: a CT in grey with one or two label maps in colour over it. */
import { stepsFor } from './nifti.js';

/** Level and width in Hounsfield units. */
export const WINDOWS = {
  abdomen: { name: 'Abdomen', level: 40, width: 400 },
  soft: { name: 'Soft tissue', level: 50, width: 350 },
  bone: { name: 'Bone', level: 400, width: 1800 },
  lung: { name: 'Lung', level: -600, width: 1500 },
};

export const VIEWS = {
  all: 'Three planes and 3-D',
  planes: 'Three planes',
  axial: 'Axial',
  coronal: 'Coronal',
  sagittal: 'Sagittal',
  render: '3-D',
};

// Of the spleen, as in the server's pictures; and of the one that it is compared with.
const COLOURS = [[64, 224, 178], [255, 140, 40]];

// Voxels that a key moves the crosshair. The patient's right is on the left.
const STEPS = {
  ArrowLeft: [1, 0, 0],
  ArrowRight: [-1, 0, 0],
  ArrowUp: [0, 1, 0],
  ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1],
  PageDown: [0, 0, -1],
};
// Degrees that the same keys turn the 3-D view.
const TURNS = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, 5], ArrowDown: [0, -5] };

/**
 * What this browser can draw.
 *
 * @returns {?{software: boolean, voxels: number, side: number}} null without WebGL 2; `software`
 *   if the processor draws; so many voxels in all, and along an axis, are drawn in good time
 */
export function graphics() {
  const gl = document.createElement('canvas').getContext('webgl2');
  if (!gl) return null;
  const names = gl.getExtension('WEBGL_debug_renderer_info');
  const renderer = gl.getParameter(names ? names.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
  const software = /swiftshader|llvmpipe|software|basic render/i.test(renderer);
  // NiiVue takes 16 bytes of graphics memory for a voxel, and a processor computes each of them.
  return { software, voxels: software ? 2 ** 24 : 2 ** 27, side: gl.getParameter(gl.MAX_3D_TEXTURE_SIZE) };
}

/** A shader, as NiiVue has them, for which every point lies outside of the picture. */
function drawsNothing(gl) {
  const program = gl.createProgram();
  const parts = [
    [gl.VERTEX_SHADER, 'void main() { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); }'],
    [gl.FRAGMENT_SHADER, 'void main() { gl_FragColor = vec4(0.0); }'],
  ];
  for (const [kind, text] of parts) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  return { uniforms: {}, use: () => gl.useProgram(program) };
}

/** One scene, for as long as the page is open: browsers allow few of them. */
export class Scene {
  #library;
  #niivue;
  #window = 'abdomen';
  #opacity = 0.5;
  #steps = [1, 1, 1];

  /**
   * @param {HTMLCanvasElement} canvas one that can be seen
   * @param {(place: {mm: number[], values: number[]}) => void} onPlace told where the crosshair is:
   *   right, anterior, superior in mm, and the values of all images there
   */
  static async on(canvas, onPlace) {
    const scene = new Scene();
    scene.#library = await import('./vendor/niivue.js');
    const { Niivue, MULTIPLANAR_TYPE } = scene.#library;
    scene.#niivue = new Niivue({
      logLevel: 'warn',
      loadingText: '',
      dragAndDropEnabled: false, // files that are dropped are new runs
      scrollRequiresFocus: true, // else the page could not be scrolled past it
      viewModeHotKey: '',
      clipPlaneHotKey: '',
      cycleClipPlaneHotKey: '',
      isRadiologicalConvention: true, // as in the server's pictures
      sagittalNoseLeft: true,
      isSliceMM: true,
      isNearestInterpolation: true, // voxels as they are
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      crosshairWidth: 1,
      crosshairWidthUnit: 'mm',
      crosshairColor: [0.4, 0.8, 1, 0.8],
      fontColor: [0.9, 0.9, 0.9, 1],
    });
    scene.#niivue.onLocationChange = ({ mm, values }) =>
      onPlace({ mm: [...mm].slice(0, 3), values: values.map(({ value }) => value) });
    canvas.addEventListener('keydown', (event) => scene.#key(event));
    await scene.#niivue.attachToCanvas(canvas);
    // At each change of the CT, NiiVue computes gradients for a light that is not used here. Where
    // the processor draws, that takes longer than all the rest.
    const nothing = drawsNothing(scene.#niivue.gl);
    Object.assign(scene.#niivue, { blurShader: nothing, sobelFirstOrderShader: nothing });
    return scene;
  }

  #key(event) {
    const { sliceType } = this.#niivue.opts;
    const turns = sliceType === this.#library.SLICE_TYPE.RENDER;
    const step = (turns ? TURNS : STEPS)[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopImmediatePropagation(); // NiiVue's own arrows are for volumes in time
    if (!turns) return this.#niivue.moveCrosshairInVox(...step);
    const { renderAzimuth, renderElevation } = this.#niivue.scene;
    this.#niivue.setRenderAzimuthElevation(renderAzimuth + step[0], renderElevation + step[1]);
  }

  /**
   * @param {Nifti} ct
   * @param {Nifti} labels on the same grid: 0, and 1 for the spleen
   * @param {number[]} middle where the crosshair begins, in voxels
   * @param {{voxels: number, side: number}} most what is drawn of them; the rest is left out
   * @returns {Promise<number[]>} every how many voxels one is drawn, along each axis
   */
  async show(ct, labels, middle, most) {
    this.clear();
    this.#steps = stepsFor(ct, most);
    const grey = await this.#image(ct, 'ct.nii', { colormap: 'gray' });
    this.#setRange(grey);
    // Not by `addVolume`: everything is drawn anew for each, and large volumes take a while.
    this.#niivue.volumes = [grey];
    await this.#addLabels(labels);
    const at = middle.map((n, axis) => n / this.#steps[axis]);
    const mm = grey.hdr.affine.slice(0, 3).map(([a, b, c, d]) => a * at[0] + b * at[1] + c * at[2] + d);
    this.#niivue.scene.crosshairPos = this.#niivue.mm2frac(mm);
    this.#niivue.drawScene();
    this.#niivue.createOnLocationChange();
    return this.#steps;
  }

  #image(nifti, name, options) {
    const { buffer } = nifti.thinned(this.#steps);
    return this.#library.NVImage.loadFromUrl({ url: buffer, name, ...options });
  }

  async #addLabels(nifti) {
    const image = await this.#image(nifti, 'labels.nii');
    const colour = COLOURS[this.#niivue.volumes.length - 1];
    const [R, G, B] = colour.map((value) => [0, value]);
    image.setColormapLabel({ R, G, B, A: [0, 255], I: [0, 1] });
    image.opacity = this.#opacity;
    this.#niivue.addVolume(image);
  }

  /**
   * Show other labels of the same volume, too; null takes them away.
   *
   * @param {?Nifti} other
   */
  async compare(other) {
    const [ct, labels, before] = this.#niivue.volumes;
    if (before && !other) this.#niivue.removeVolume(before);
    else this.#niivue.volumes = [ct, labels];
    if (other) await this.#addLabels(other);
    this.#niivue.createOnLocationChange();
  }

  clear() {
    const [ct] = this.#niivue.volumes;
    if (!ct) return;
    this.#niivue.volumes = [ct];
    this.#niivue.removeVolume(ct);
  }

  set view(name) {
    const { SHOW_RENDER, SLICE_TYPE } = this.#library;
    const { AXIAL, CORONAL, SAGITTAL, RENDER, MULTIPLANAR } = SLICE_TYPE;
    const types = { axial: AXIAL, coronal: CORONAL, sagittal: SAGITTAL, render: RENDER };
    this.#niivue.opts.multiplanarShowRender = name === 'all' ? SHOW_RENDER.ALWAYS : SHOW_RENDER.NEVER;
    this.#niivue.setSliceType(types[name] ?? MULTIPLANAR);
  }

  #setRange(ct) {
    const { level, width } = WINDOWS[this.#window];
    ct.cal_min = level - width / 2;
    ct.cal_max = level + width / 2;
  }

  /** A key of WINDOWS. */
  set window(name) {
    this.#window = name;
    const [ct] = this.#niivue.volumes;
    if (!ct) return;
    this.#setRange(ct);
    this.#redraw(0, 1);
  }

  /** Of the labels, 0 to 1. */
  set opacity(value) {
    this.#opacity = value;
    const { volumes } = this.#niivue;
    for (const labels of volumes.slice(1)) labels.opacity = value;
    this.#redraw(1, volumes.length);
  }

  /** Only the images that have changed, since each takes a while. */
  #redraw(from, to) {
    for (let n = from; n < to; n++) this.#niivue.refreshLayers(this.#niivue.volumes[n], n);
    this.#niivue.drawScene();
  }
}
