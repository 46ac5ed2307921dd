/** Files that are dropped anywhere on the page, or chosen. */
import { byId } from './dom.js';

/** Call `take(files, folders)` with what is dropped or chosen; `folders` are names. */
export function takeFiles(take) {
  const place = byId('drop');
  const chooser = byId('files');
  chooser.addEventListener('change', () => {
    take([...chooser.files], []);
    chooser.value = ''; // so that the same file can be chosen again
  });
  const over = (is) => (event) => {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault();
    place.classList.toggle('over', is);
  };
  document.addEventListener('dragover', over(true));
  document.addEventListener('dragleave', (event) => event.relatedTarget ?? over(false)(event));
  document.addEventListener('drop', (event) => {
    over(false)(event);
    const files = [];
    const folders = [];
    for (const item of event.dataTransfer.items) {
      if (item.kind !== 'file') continue;
      const file = item.getAsFile();
      if (item.webkitGetAsEntry()?.isDirectory) folders.push(file.name);
      else files.push(file);
    }
    take(files, folders);
  });
}
