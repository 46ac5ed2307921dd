/** The list of runs: a row for each, which stays the same element while its job changes. */
import { make, setText } from './dom.js';
import { isActive, moment, stateWord, summary } from './words.js';


class Row {
  constructor(job, desk) {
    this.id = job.id;
    this.desk = desk;
    const name = desk.nameOf(job);
    this.image = make('img', { alt: '', width: 96, height: 72 });
    this.link = make('a', { href: `#job=${job.id}`, onclick: desk.follow }, name);
    this.badge = make('span', { class: 'badge' });
    this.said = make('span', {});
    this.bar = make('progress', { max: 1, 'aria-label': `Progress of ${name}` });
    const button = (word, action) =>
      make('button', { 'aria-label': `${word} ${name}`, onclick: () => action(this.job) }, word);
    this.cancel = button('Cancel', desk.cancel);
    this.rerun = button('Rerun', desk.rerun);
    this.remove = button('Remove', desk.remove);
    this.element = make(
      'li',
      { class: 'run' },
      make('div', { class: 'thumbnail' }, this.image),
      make(
        'div',
        { class: 'what' },
        make('p', { class: 'name' }, this.link, ' ', this.badge),
        make('p', {}, this.said),
        this.bar,
        make('p', { class: 'faint' }, `${job.model.modelID} · ${moment(job.created_at)}`),
      ),
      make('div', { class: 'buttons' }, this.cancel, this.rerun, this.remove),
    );
  }

  update(job, selected) {
    const before = this.job?.state;
    this.job = job;
    this.element.dataset.state = job.state;
    setText(this.link, this.desk.nameOf(job)); // another row may know it a moment later
    setText(this.badge, stateWord(job.state));
    setText(this.said, summary(job));
    this.bar.hidden = job.state !== 'running';
    if (job.progress.fraction != null) this.bar.value = job.progress.fraction;
    const active = isActive(job);
    this.cancel.hidden = !active;
    this.cancel.disabled = job.cancel_requested;
    this.remove.hidden = active;
    this.rerun.hidden = active || Boolean(job.purged_at);
    if (selected) this.link.setAttribute('aria-current', 'true');
    else this.link.removeAttribute('aria-current');
    if (job.state === 'succeeded' && !job.purged_at && before !== job.state) {
      this.desk.pictures.show(this.image, `jobs/${job.id}/preview.png?plane=axial`);
    }
  }
}

export class Rows {
  #rows = new Map();

  /**
   * @param {HTMLElement} list a `ul`
   * @param desk what a row needs: `nameOf(job)`, `pictures`, and what its buttons do
   */
  constructor(list, desk) {
    this.list = list;
    this.desk = desk;
  }

  show(jobs, selected) {
    const gone = new Set(this.#rows.keys());
    let place = this.list.firstElementChild;
    for (const job of jobs) {
      gone.delete(job.id);
      let row = this.#rows.get(job.id);
      if (!row) this.#rows.set(job.id, (row = new Row(job, this.desk)));
      row.update(job, job.id === selected);
      if (row.element === place) place = place.nextElementSibling;
      else this.list.insertBefore(row.element, place); // new, or another order
    }
    for (const id of gone) this.#drop(id);
  }

  #drop(id) {
    const { element } = this.#rows.get(id);
    // Whoever was in this row with the keyboard is not sent back to the top of the page.
    const near = element.nextElementSibling ?? element.previousElementSibling;
    const had = element.contains(document.activeElement);
    element.remove();
    this.#rows.delete(id);
    if (had) (near?.querySelector('a') ?? this.list.closest('section').querySelector('h2')).focus();
  }
}
