/** A problem as a person sees it: what, why, and what to do. */
import { ROOT } from './api.js';
import { make } from './dom.js';

/**
 * @param {{title, detail, remedy, code, type}} problem of the server or of the page
 * @param {...Node} actions buttons
 */
export function troubleBox(problem, ...actions) {
  const { title, detail, remedy, code } = problem;
  const explained = code && code !== 'unreachable';
  return make(
    'div',
    { class: 'trouble' },
    make('p', {}, make('strong', {}, `${title}.`.replace('..', '.')), ' ', detail),
    remedy && make('p', {}, make('b', {}, 'What to do: '), remedy),
    (explained || actions.length > 0) &&
      make(
        'p',
        { class: 'buttons' },
        ...actions,
        explained &&
          make(
            'a',
            { href: new URL(`docs/errors#${code}`, ROOT), target: '_blank', rel: 'noopener' },
            `About ${code}`,
          ),
      ),
  );
}

/** Show a problem in a place that screen readers watch; null clears it. */
export function showTrouble(place, problem, ...actions) {
  place.replaceChildren(...(problem ? [troubleBox(problem, ...actions)] : []));
}
