// Search: names of weights, ops and modules of a graph, those of every layer too; what is alike is found once.

const box = document.getElementById('search');
const results = document.getElementById('results');
const foundList = document.getElementById('found');
const many = document.getElementById('many');
const SHOWN = 50;
let index = null; // entries of the graph on show, made when they are first needed
let names = null;
let found = [];
let marked = -1;

// An entry: a name, what it is, and the way to it: its block, which layer of it, and the items inside.
function entriesOf() {
  if (index) return index;
  index = [];
  for (const block of tree.blocks) {
    index.push({ name: nameOf(block), kind: block.kind, block, at: 0, trail: [] });
    if (block.kind === 'rows') block.item.list.forEach((item) => index.push({ name: item.row.name, kind: 'row', block, at: 0, trail: [item] }));
    else if (block.kind === 'stack') {
      block.item.members.forEach((member, at) => collect(block.item.kinds[member.kind], member, member.name, { block, at, trail: [] }));
    } else if (block.kind === 'ops') collect({ parts: block.item.ops }, null, '', { block, at: 0, trail: [] });
    else collect(block.item, null, block.path, { block, at: 0, trail: [] });
  }
  return index;
}

function collect(item, member, path, way) {
  for (const part of item.parts || []) {
    const kind = kindOf(part);
    const trail = [...way.trail, part];
    const inner = kind === 'module' ? [path, part.module].filter(Boolean).join('.') : path;
    const name = kind === 'module' ? inner : fill(part.name, member);
    index.push({ ...way, name, kind, trail, full: kind === 'weight' ? part.before + name : name, call: part.call, member });
    if (kind === 'module') collect(part, member, inner, { ...way, trail });
  }
}

function nameIndex() {
  if (names) return names;
  names = new Map();
  const order = { row: 0, weight: 1, collective: 1, op: 1 };
  for (const entry of entriesOf()) {
    if (entry.kind in order && !(entry.kind === 'row' && entry.block.item.rows === 'results')) names.set(entry.name, entry);
  }
  return names;
}

// The ops that take a value, of its own graph.
function usersOf(one) {
  const name = nameOf(one);
  const quoted = new RegExp(`(^|[\\s(\\[,=])${name.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}(?=[\\s)\\],]|$)`);
  return entriesOf().filter((entry) => entry.call && quoted.test(fill(entry.call, entry.member))).slice(0, 20);
}

function matches(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const order = { weight: 0, stack: 1, module: 1, collective: 2, op: 3, row: 4, rows: 4 };
  const score = (entry) => {
    const name = (entry.full || entry.name).toLowerCase();
    const whole = [entry.name.toLowerCase(), name].includes(words.join(' ')) ? 0 : name.endsWith(words[words.length - 1]) ? 1 : 2;
    return whole * 10 + order[entry.kind];
  };
  return entriesOf()
    .filter((entry) => words.every((word) => (entry.full || entry.name).toLowerCase().includes(word)))
    .map((entry, at) => [score(entry), at, entry])
    .sort((one, other) => one[0] - other[0] || one[1] - other[1])
    .map(([, , entry]) => entry);
}

// Entries that are the same in several layers, together: an entry, and those that are like it.
function alike(entries) {
  const groups = new Map();
  for (const entry of entries) {
    const item = entry.trail[entry.trail.length - 1] || entry.block;
    if (!groups.has(item)) groups.set(item, []);
    groups.get(item).push(entry);
  }
  return [...groups.values()];
}

function search() {
  const text = box.value.trim();
  const all = text ? matches(text) : [];
  const groups = alike(all);
  found = groups.slice(0, SHOWN).map(([entry]) => entry);
  marked = found.length ? 0 : -1;
  foundList.replaceChildren(...groups.slice(0, SHOWN).map(option));
  many.textContent = foundText(all.length, groups.length);
  results.hidden = !text;
  box.setAttribute('aria-expanded', String(Boolean(text)));
  mark(marked);
}

function foundText(all, kinds) {
  if (!all) return 'Nothing has such a name in this graph.';
  const number = `${all.toLocaleString('en')} found`;
  const different = kinds < all ? `, ${kinds.toLocaleString('en')} of them different` : '';
  return `${number}${different}${kinds > SHOWN ? `; the first ${SHOWN} are shown` : ''}.`;
}

function option(group, at) {
  const [entry] = group;
  const name = entry.full || entry.name;
  const sort = entry.kind === 'row' ? 'value' : entry.kind === 'stack' ? 'layers' : entry.kind;
  const made = make('li', { role: 'option', id: `found-${at}`, 'aria-selected': 'false' },
    make('span', { class: `sort ${entry.kind}` }, sort), make('span', {}, ...breakable(name)), likeness(entry, group.length));
  made.addEventListener('mousedown', (event) => { event.preventDefault(); choose(entry); });
  return made;
}

// How many there are like an entry: as many as were found, or one of all.
function likeness(entry, count) {
  const kind = entry.member && entry.block.kind === 'stack' ? entry.block.item.members.filter((one) => one.kind === entry.member.kind).length : 1;
  if (count > 1) return make('span', { class: 'times' }, `×${count} alike`);
  return kind > 1 ? make('span', { class: 'muted' }, `one of ${kind} alike`) : null;
}

function mark(at) {
  marked = at;
  [...foundList.querySelectorAll('[role=option]')].forEach((item, each) => {
    item.setAttribute('aria-selected', String(each === at));
    if (each === at) item.scrollIntoView({ block: 'nearest' });
  });
  if (at >= 0) box.setAttribute('aria-activedescendant', `found-${at}`);
  else box.removeAttribute('aria-activedescendant');
}

function choose(entry) {
  hideFound();
  box.value = '';
  reveal(entry);
}

function hideFound() {
  results.hidden = true;
  box.setAttribute('aria-expanded', 'false');
  box.removeAttribute('aria-activedescendant');
}

// Unfold whatever an entry lies in, and explain it.
function reveal(entry) {
  let one = entry.block;
  if (one.kind === 'stack' && one.chosen !== entry.at) {
    one.chosen = entry.at;
    if (isOpen(one)) drawChildren(one);
  }
  for (const item of entry.trail) {
    open(one);
    let next = childrenOf(one).find((child) => child.item === item);
    if (!next) {
      const group = childrenOf(one).find((child) => child.kind === 'ops' && child.item.ops.includes(item));
      open(group);
      next = childrenOf(group).find((child) => child.item === item);
    }
    one = next;
  }
  explain(one);
  focusOn(one);
  one.element.querySelector('.row').scrollIntoView({ block: 'center' });
}

box.addEventListener('input', search);
box.addEventListener('focus', () => { if (box.value.trim()) search(); });
box.addEventListener('blur', hideFound);
box.addEventListener('keydown', (event) => {
  if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
    if (found.length) mark((marked + (event.key === 'ArrowDown' ? 1 : found.length - 1)) % found.length);
    event.preventDefault();
  } else if (event.key === 'Enter' && found[marked] && !results.hidden) {
    choose(found[marked]);
  } else if (event.key === 'Escape') {
    event.stopPropagation();
    event.preventDefault();
    if (results.hidden) box.blur();
    box.value = '';
    hideFound();
  }
});
