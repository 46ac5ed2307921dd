/** The page: puts its parts together. */
import { Api, TabStore } from './api.js';
import { announce, ask, byId, make } from './dom.js';
import { takeFiles } from './drop.js';
import { Models } from './models.js';
import { Names } from './names.js';
import { Panel } from './panel.js';
import { Pictures } from './pictures.js';
import { Preview } from './preview.js';
import { asProblem, Problem } from './problem.js';
import { Rows } from './rows.js';
import { SignIn } from './signin.js';
import { showTrouble } from './trouble.js';
import { Uploads } from './uploads.js';
import { Viewer } from './viewer.js';
import { Watch } from './watch.js';
import { nameless, STATES, stateWord } from './words.js';

const api = new Api(new TabStore('token'));
const names = new Names(new TabStore('names'));
const signIn = new SignIn(api);
const models = new Models(api);
const watch = new Watch(api);
const pictures = new Pictures(api);
const views = [new Viewer(api), new Preview(pictures)];

const desk = {
  api,
  pictures,
  show: (job) => views.forEach((view) => view.show(job)),
  clear: () => views.forEach((view) => view.clear()),
  fileNameOf: (job) => names.get(job.id),
  nameOf: (job) => names.get(job.id) ?? nameless(job),
  cancel: (job) => act(() => api.call(`jobs/${job.id}/cancel`, { method: 'POST' })),
  rerun: (job) =>
    act(async () => {
      const again = await api.json(`jobs/${job.id}/rerun`, { method: 'POST' });
      names.set(again.id, names.get(job.id));
      announce('A new run was added');
      location.hash = `job=${again.id}`;
    }),
  follow: ({ currentTarget }) => {
    if (currentTarget.hash === location.hash) go(); // otherwise, `hashchange` does
  },
  remove: async (job) => {
    const explanation = 'Its volume, segmentation, record and log are deleted on the server.';
    if (!(await ask(`Remove ${desk.nameOf(job)}?`, explanation, 'Remove'))) return;
    await act(async () => {
      await api.call(`jobs/${job.id}`, { method: 'DELETE' });
      pictures.forget(job.id);
      watch.forget(job.id);
      if (chosen() === job.id) location.hash = '';
    });
  },
};
const rows = new Rows(byId('runs'), desk);
const panel = new Panel(desk);

async function act(action) {
  showTrouble(byId('runs-trouble'), null);
  try {
    await action();
  } catch (error) {
    showTrouble(byId('runs-trouble'), asProblem(error));
  }
  await watch.refresh();
}

const chosen = () => new URLSearchParams(location.hash.slice(1)).get('job');

function show() {
  rows.show(watch.jobs, chosen());
  byId('no-runs').hidden = watch.jobs.length > 0;
  byId('more').hidden = !watch.more;
  const job = watch.get(chosen());
  if (job) panel.show(job);
  else panel.hide();
}

function accepted(job, file) {
  names.set(job.id, file.name);
  announce(`${file.name} was accepted`);
  if (!chosen()) history.replaceState(null, '', `#job=${job.id}`);
  choose();
}

const uploads = new Uploads(api, byId('uploads'), accepted);

takeFiles((files, folders) => {
  showTrouble(byId('new-trouble'), null);
  if (models.chosen) {
    uploads.add(files, models.chosen, folders);
  } else {
    byId('adding').open = true;
    const remedy = 'Add the weights of a model (a .pth file) above, and drop the volumes again.';
    showTrouble(byId('new-trouble'), new Problem({ title: 'There is no model to run', remedy }));
  }
});

async function choose() {
  watch.pinned = chosen();
  show();
  await watch.refresh();
}

/** A person has followed a link: the keyboard and the screen reader follow, too. */
async function go() {
  await choose();
  if (byId('run').hidden) return;
  byId('run-title').focus({ preventScroll: true });
  byId('run').scrollIntoView({ block: 'nearest' });
}

function fillFilter() {
  const select = byId('filter-model');
  const known = new Set([...models.names, select.value].filter(Boolean));
  const options = [...known].map((name) => make('option', { value: name, selected: name === select.value }, name));
  select.replaceChildren(make('option', { value: '' }, 'All'), ...options);
}

async function begin() {
  try {
    await models.refresh();
    showTrouble(byId('trouble'), null);
  } catch (error) {
    if (!signIn.isAsking) showTrouble(byId('trouble'), asProblem(error));
  }
  await watch.refresh();
}

byId('filter-state').append(...STATES.map((state) => make('option', { value: state }, stateWord(state))));
byId('filter').addEventListener('change', () =>
  watch.choose({ state: byId('filter-state').value, modelID: byId('filter-model').value }),
);
byId('more').addEventListener('click', () => watch.showMore());
models.addEventListener('change', fillFilter);
signIn.addEventListener('change', begin);
watch.addEventListener('change', show);
watch.addEventListener('trouble', () => {
  if (!signIn.isAsking) showTrouble(byId('trouble'), watch.problem);
});
addEventListener('hashchange', go);

watch.pinned = chosen();
begin();
