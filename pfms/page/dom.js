/** Elements, built without any text that is read as HTML: the policy of the page forbids it. */

/**
 * An element. Attributes that are false or null are left out; `onclick` and the like are listeners.
 */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Set a text only if it differs, so that a screen reader and a selection are left alone. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Tell those who do not see the page what has happened. */
export function announce(text) {
  byId('says').textContent = text;
}

/** Ask before something that cannot be undone; resolves to whether it was agreed to. */
export function ask(question, explanation, yes) {
  const dialog = make(
    'dialog',
    { 'aria-labelledby': 'asked', 'aria-describedby': 'explained' },
    make('h2', { id: 'asked' }, question),
    make('p', { id: 'explained' }, explanation),
    make(
      'div',
      { class: 'buttons' },
      make('button', { class: 'danger', onclick: () => dialog.close('yes') }, yes),
      make('button', { autofocus: true, onclick: () => dialog.close('') }, 'Keep'),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(dialog.returnValue === 'yes');
    });
  });
}

/** Hand a file to the user, as a download. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  make('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser may still be reading it
}
