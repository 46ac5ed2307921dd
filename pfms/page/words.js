/** Numbers, times and states in words. */

const HEADINGS = {
  queued: 'Waiting',
  running: 'Running',
  succeeded: 'Done',
  failed: 'Failed',
  cancelled: 'Cancelled',
};

const STAGES = {
  loading: 'Reading the volume',
  inferring: 'Network',
  resampling: 'Back to the grid of the volume',
  writing: 'Writing the segmentation',
  checking: 'Checking the result',
};

export const STATES = Object.keys(HEADINGS);
export const stateWord = (state) => HEADINGS[state] ?? state;
export const isActive = (job) => job.state === 'queued' || job.state === 'running';

export function bytes(n) {
  for (const [size, unit] of [[2 ** 30, 'GiB'], [2 ** 20, 'MiB'], [2 ** 10, 'KiB']]) {
    if (n >= size) return `${(n / size).toFixed(n < 10 * size ? 1 : 0)} ${unit}`;
  }
  return `${n} bytes`;
}

export function duration(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Millilitres with three significant digits at least: 8.25, 31.4, 231, 1204. */
export function millilitres(ml) {
  const digits = ml < 10 ? 2 : ml < 100 ? 1 : 0;
  return `${ml.toFixed(digits)} ml`;
}

/** A time stamp of the server (UTC) in the reader's own time. */
export function moment(iso, locale = undefined) {
  return new Date(iso).toLocaleString(locale, { dateStyle: 'medium', timeStyle: 'medium' });
}

/** What a job is doing, or how it ended. */
export function summary(job, now = Date.now()) {
  switch (job.state) {
    case 'queued':
      return waiting(job, now);
    case 'running':
      return job.cancel_requested ? 'Being cancelled' : running(job.progress);
    case 'succeeded':
      return [
        job.segmentation.spleen_voxels
          ? `Spleen ${millilitres(job.segmentation.spleen_ml)}`
          : 'No spleen found',
        job.seconds != null && `in ${duration(job.seconds)}`,
        job.purged_at && 'its volumes were removed',
      ]
        .filter(Boolean)
        .join(', ');
    case 'failed':
      return job.error ? job.error.title : 'It failed';
    default:
      return stateWord(job.state);
  }
}

function waiting({ place, estimated_start: start, cancel_requested: cancelling }, now) {
  if (cancelling) return 'Being cancelled';
  const where =
    place == null ? 'In the queue' : place === 0 ? 'Next in the queue' : `${place} before it in the queue`;
  const seconds = start ? (Date.parse(start) - now) / 1000 : 0;
  return seconds > 1 ? `${where}, starts in about ${duration(seconds)}` : where;
}

function running({ stage, done, total }) {
  const name = STAGES[stage] ?? 'Running';
  if (total == null || done == null) return name;
  return stage === 'inferring' ? `${name}: window ${done} of ${total}` : `${name}: ${done} %`;
}

/** The name for a run whose file's name this tab does not know. */
export const nameless = (job) => `Run of ${moment(job.created_at)}`;

/** A command line as one would type it. */
export function commandLine(words) {
  return words
    .map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`))
    .join(' ');
}

/** A model ID that the server accepts, from the name of a file. */
export function modelIdOf(fileName) {
  const stem = fileName.replace(/\.[^.]*$/, '').normalize('NFKD');
  return stem.replace(/[^A-Za-z0-9._-]+/g, '-').replace(/^[^A-Za-z0-9]+|-+$/g, '').slice(0, 128);
}

/** The name of a file without the ending of a NIfTI. */
export const stemOf = (fileName) => fileName.replace(/(\.nii)?(\.gz)?$/i, '');
