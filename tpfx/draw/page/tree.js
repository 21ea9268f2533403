// The tree: one row a node, arrows with collectives between blocks, unfolded where somebody asks.

let tree = null;
let current = null; // the node whose explanation is open
let widest = 1; // the most bytes that flow from one block to the next

function drawTree(graph) {
  const blocks = blocksOf(graph);
  const gathered = graph.collectives.filter((one) => one.kind === 'gather');
  tree = make('ul', { role: 'tree', class: 'tree', 'aria-label': `Blocks of ${titleOf(graph)}` });
  widest = Math.max(...blocks.map((one) => aliveIn(one).after), 1);
  blocks.forEach((one, at) => {
    const next = blocks[at + 1];
    tree.append(drawNode(one, 1, next !== undefined && next.item.module !== 'used by no graph', next && next.item.rows === 'results' ? gathered : []));
  });
  tree.blocks = blocks;
  tree.firstElementChild.tabIndex = 0;
  tree.addEventListener('click', clicked);
  tree.addEventListener('keydown', pressed);
  return tree;
}

function drawNode(one, level, arrow, extra = []) {
  const opens = childCount(one) > 0;
  const item = make('li', {
    role: 'treeitem', class: one.kind, tabindex: -1, 'aria-level': level, 'aria-selected': 'false',
    'aria-expanded': opens ? 'false' : null, 'data-name': nameOf(one),
  });
  one.element = item;
  item.node = one;
  item.append(make('div', { class: 'row' }, make('span', { class: `caret${opens ? '' : ' none'}`, 'aria-hidden': 'true' }), ...cells(one)));
  const talks = one.kind !== 'collective' && totals(one.item).collectives.size > 0;
  if (arrow || talks) item.append(drawArrow(one, extra, arrow));
  return item;
}

function childCount({ kind, item }) {
  if (kind === 'stack') return item.members.length;
  return (item.parts || item.ops || item.list || []).length;
}

function cells(one) {
  switch (one.kind) {
    case 'stack':
    case 'module': return blockCells(one);
    case 'weight': return weightCells(one);
    case 'collective': return [collectivePill(one.item.collective.kind, 1, one.item.collective.bytes), make('code', { class: 'type' }, fill(one.item.type, one.member))];
    case 'ops': return [make('span', { class: 'name' }, nameOf(one)), make('span', { class: 'muted clip' }, one.item.ops.map(opWord).join(' · '))];
    case 'op': return opCells(one);
    case 'row': return [make('span', { class: 'name' }, one.item.row.name), make('code', { class: 'type' }, one.item.row.type), ...chips(one.item.row.notes)];
    default: return [make('span', { class: 'name' }, nameOf(one)), make('span', { class: 'muted clip' }, one.item.list.map(({ row }) => row.name).join(' · '))];
  }
}

function blockCells(one) {
  const { weights } = totals(one.item);
  const count = one.kind === 'stack' && one.item.members.length > 1 ? make('span', { class: 'times' }, `×${one.item.members.length}`) : null;
  const bars = make('span', { class: 'stripes' });
  const inside = one.kind === 'stack' ? totals(one.item.kinds[0]).weights : weights;
  inside.slice(0, 9).forEach((at) => bars.append(splitBars(plan.weights[at])));
  const size = weights.length ? make('span', { class: 'size', title: `${bytesOf(one.item).toLocaleString('en')} bytes` }, bytesText(bytesOf(one.item))) : make('span', { class: 'size' });
  return [make('span', { class: 'name' }, ...breakable(labelOf(one)), count, isBackward(one.item) ? chip('backward') : null, ...rolesOf(one)), bars, size];
}

// How the products in a small module are divided: column, row.
function rolesOf(one) {
  if (one.kind !== 'module') return [];
  const notes = new Set(one.item.parts.flatMap((part) => part.notes || []));
  return [...notes].filter((note) => /^(column|row), /.test(note)).map((note) => chip(note.split(',')[0]));
}

function weightCells(one) {
  const weight = plan.weights[one.item.weight];
  const type = one.item.type ? fill(one.item.type, one.member) : `${weight.dtype}[${weight.shape.join(', ')}]`;
  return [make('span', { class: 'name' }, ...breakable(labelOf(one)), make('code', { class: 'type' }, type), ...chips(one.item.notes)),
    splitBars(weight), make('span', { class: 'size' }, heldText(weight.held))];
}

function opCells(one) {
  const word = opWord(one.item);
  const rest = one.item.call === one.item.name ? '' : fill(one.item.call.slice(word.length), one.member, true);
  return [make('code', { class: 'call clip' }, make('b', {}, word), rest),
    ...chips(one.item.notes), make('code', { class: 'type' }, fill(one.item.type, one.member))];
}

// linear, of linear(…); split[0], of a result of several.
function opWord(op) {
  const word = (op.call || '').split('(')[0];
  return op.call === op.name ? last(word) : word;
}

function chips(notes) {
  return (notes || []).map(chip);
}

function chip(note) {
  return make('span', { class: `chip ${note.split(/[,: ]/)[0]}` }, note);
}

function collectivePill(kind, count, bytes) {
  const text = `${count > 1 ? `${count.toLocaleString('en')} ` : ''}${kind}`;
  return make('span', { class: `pill ${kind}`, 'data-bytes': bytes, title: `${bytes.toLocaleString('en')} bytes` }, text, make('b', {}, bytesText(bytes)));
}

function drawArrow(one, extra, goesOn) {
  const pills = [...totals(one.item).collectives].map(([kind, { count, bytes }]) => collectivePill(kind, count, bytes));
  const outside = extra.map(({ kind, count, bytes }) => collectivePill(kind, count, bytes));
  const inner = make('span', { class: 'inner' }, ...(one.kind === 'collective' ? [] : pills));
  const { after } = aliveIn(one);
  const line = make('span', { class: 'line', 'aria-hidden': 'true', 'data-bytes': after, title: after ? `${bytesText(after)} flow on` : null });
  line.style.setProperty('--width', `${(2 + 10 * Math.min(1, after / widest)).toFixed(1)}px`);
  return make('div', { class: goesOn ? 'arrow' : 'arrow end' }, line, inner, ...outside);
}

// Unfolding.

function isOpen(one) {
  return one.element.getAttribute('aria-expanded') === 'true';
}

function open(one) {
  if (!childCount(one) || isOpen(one)) return;
  one.element.setAttribute('aria-expanded', 'true');
  drawChildren(one);
}

function close(one) {
  if (!isOpen(one)) return;
  one.element.setAttribute('aria-expanded', 'false');
  const group = one.element.querySelector(':scope > ul');
  if (group.contains(document.activeElement)) focusOn(one);
  if (group.querySelector('[tabindex="0"]')) focusable(one);
  group.remove();
}

function drawChildren(one) {
  const children = childrenOf(one);
  const level = Number(one.element.getAttribute('aria-level')) + 1;
  const group = make('ul', { role: 'group' });
  if (one.kind === 'stack' && one.item.members.length > 1) group.append(stepper(one));
  children.forEach((child, at) => {
    const block = (each) => each && ['module', 'stack', 'collective'].includes(each.kind);
    const next = children[at + 1];
    group.append(drawNode(child, level, next !== undefined && child.kind !== 'weight' && (block(child) || block(next))));
  });
  const before = one.element.querySelector(':scope > ul');
  if (before) before.replaceWith(group);
  else one.element.querySelector(':scope > .row').after(group);
}

// Which of the layers that are alike is shown.
function stepper(one) {
  const { members, kinds } = one.item;
  const input = make('input', { type: 'number', min: 1, max: members.length, value: one.chosen + 1, 'aria-label': 'Which layer is shown' });
  const show = (at) => {
    one.chosen = Math.max(0, Math.min(members.length - 1, at || 0));
    drawChildren(one);
  };
  input.addEventListener('change', () => { show(Number(input.value) - 1); one.element.querySelector('.stepper input').focus(); });
  const move = (by, text, label) => {
    const button = make('button', { type: 'button', 'aria-label': label }, text);
    button.disabled = !members[one.chosen + by];
    button.addEventListener('click', () => { show(one.chosen + by); one.element.querySelector('.stepper input').focus(); });
    return button;
  };
  const text = kinds.length > 1 ? `${kinds.length} kinds of layers; this one is like ${members.filter((each) => each.kind === members[one.chosen].kind).length - 1} others`
    : 'all alike';
  return make('li', { role: 'none', class: 'stepper' }, move(-1, '‹', 'The layer before'), input, move(1, '›', 'The next layer'),
    make('code', {}, members[one.chosen].name), make('span', { class: 'muted' }, text));
}

// Mouse and keyboard.

function clicked(event) {
  const row = event.target.closest('.row');
  if (!row) return;
  const one = row.parentElement.node;
  focusOn(one);
  if (event.target.closest('.caret')) toggle(one);
  else activate(one);
}

function toggle(one) {
  if (isOpen(one)) close(one);
  else open(one);
}

function activate(one) {
  if (current === one) toggle(one);
  else { explain(one); open(one); }
}

function pressed(event) {
  const item = event.target.closest('[role=treeitem]');
  if (!item || event.target !== item || event.ctrlKey || event.metaKey || event.altKey) return;
  const one = item.node;
  const items = [...tree.querySelectorAll('[role=treeitem]')];
  const at = items.indexOf(item);
  const steps = {
    ArrowDown: () => focusOn((items[at + 1] || item).node),
    ArrowUp: () => focusOn((items[at - 1] || item).node),
    Home: () => focusOn(items[0].node),
    End: () => focusOn(items[items.length - 1].node),
    ArrowRight: () => (isOpen(one) && childrenOf(one).length ? focusOn(childrenOf(one)[0]) : open(one)),
    ArrowLeft: () => (isOpen(one) ? close(one) : one.parent && focusOn(one.parent)),
    Enter: () => activate(one),
    ' ': () => toggle(one),
  };
  const step = steps[event.key] || (/^[\w]$/.test(event.key) && (() => focusOn(next(items, at, event.key))));
  if (!step) return;
  event.preventDefault();
  step();
}

// The next row whose name begins with a letter, from the top again after the last.
function next(items, at, letter) {
  const order = [...items.slice(at + 1), ...items.slice(0, at + 1)];
  const begins = (item) => labelOf(item.node).toLowerCase().startsWith(letter.toLowerCase());
  return (order.find(begins) || items[at]).node;
}

function focusable(one) {
  tree.querySelectorAll('[role=treeitem][tabindex="0"]').forEach((item) => { item.tabIndex = -1; });
  one.element.tabIndex = 0;
}

function focusOn(one) {
  focusable(one);
  one.element.focus({ preventScroll: true });
  one.element.querySelector('.row').scrollIntoView({ block: 'nearest' });
}
