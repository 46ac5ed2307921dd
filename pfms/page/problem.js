/** What can go wrong: in the server's own words (RFC 9457), or in ours where it said nothing. */
export class Problem extends Error {
  constructor({ title, detail = '', remedy = '', code = '', status = 0, type = '', retryAfter = 0 }) {
    super(detail || title);
    Object.assign(this, { title, detail, remedy, code, status, type, retryAfter });
  }
}

/**
 * The problem that a response reports.
 *
 * @param {number} status
 * @param {string} text the body
 * @param {?string} retryAfter the header, in seconds
 */
export function problemOf(status, text, retryAfter = null) {
  const seconds = Number(retryAfter) || 0;
  try {
    const body = JSON.parse(text);
    if (body.code && body.title) return new Problem({ ...body, status, retryAfter: seconds });
  } catch {
    // Of a proxy, perhaps: it is HTML.
  }
  return new Problem({
    title: `The server answered with status ${status}`,
    remedy: 'Something between this page and pfms refused the call, perhaps a proxy: ask its operator.',
    status,
    retryAfter: seconds,
  });
}

export function unreachable() {
  return new Problem({
    code: 'unreachable',
    title: 'The server cannot be reached',
    remedy: 'Check that it is running and that you are on its network; then try again.',
  });
}

/** Any error as a problem; what nobody expected is shown, too. */
export function asProblem(error) {
  if (error instanceof Problem) return error;
  return new Problem({
    title: 'The page met an error of its own',
    detail: `${error}`,
    remedy: 'Reload the page. If it happens again, report it with this text.',
  });
}

/** Whether the same call may be accepted a little later, without any change to it. */
export const isTemporary = (problem) =>
  problem.code === 'queue-full' || problem.code === 'too-many-requests';
