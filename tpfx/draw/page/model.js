// The plan as a tree of nodes: what is in what, by what name, and how many bytes and collectives it has.

const data = JSON.parse(document.getElementById('plan').textContent);
let plan = data.sheets[data.shown]; // of the number of devices that is on show

function bytesText(size) {
  for (const [unit, power] of [['GiB', 30], ['MiB', 20], ['KiB', 10]]) {
    if (size >= 2 ** power) return `${Number((size / 2 ** power).toPrecision(4))} ${unit}`;
  }
  return `${size} B`;
}

function secondsText(seconds) {
  for (const [unit, scale] of [['s', 1], ['ms', 1e-3]]) {
    if (seconds >= scale) return `${Number((seconds / scale).toPrecision(3))} ${unit}`;
  }
  return `${Number((seconds / 1e-6).toPrecision(3))} µs`;
}

function counted(number, word) {
  return `${number.toLocaleString('en')} ${word}${number === 1 ? '' : 's'}`;
}

function percent(part, whole) {
  return `${(whole ? (100 * part) / whole : 0).toFixed(1)} %`;
}

// A text of a layer, with the layer's own names and sizes put in. In the tree, `short` leaves the layer out.
function fill(text, member, short = false) {
  if (!member) return text;
  return text.replace(/~\.?|⟨(\d+)⟩|§(\d+)/g, (found, outside, symbol) => {
    if (outside !== undefined) return member.outside[outside];
    if (symbol !== undefined) return member.symbols[symbol];
    return short && found === '~.' ? '' : member.name + found.slice(1);
  });
}

// Of layers that are alike, the first: it stands for all of them where they are drawn.
function firstLike(one) {
  let above = one;
  while (above && above.kind !== 'stack') above = above.parent;
  return above && one.member ? above.item.members.find((each) => each.kind === one.member.kind) : null;
}

function last(name) {
  return name.slice(name.lastIndexOf('.') + 1);
}

function kindOf(item) {
  if (item.kinds) return 'stack';
  if (item.module !== undefined) return 'module';
  if (item.rows) return 'rows';
  if (item.row) return 'row';
  if (item.ops) return 'ops';
  if (item.weight !== undefined) return 'weight';
  return item.collective ? 'collective' : 'op';
}

function node(item, member, parent) {
  const made = { item, member, parent, kind: kindOf(item), chosen: 0, children: null, element: null };
  made.path = pathOf(made);
  return made;
}

// The path of a module; that of whatever holds it, and its own name.
function pathOf({ kind, item, member, parent }) {
  if (kind === 'stack') return '';
  const above = parent && parent.kind === 'module' ? parent.path : member ? member.name : '';
  return kind === 'module' ? [above, item.module].filter(Boolean).join('.') : above;
}

function nameOf({ kind, item, member, path }) {
  switch (kind) {
    case 'stack': return spanOf(item.members.map((one) => one.name));
    case 'module': return path;
    case 'rows': return item.rows;
    case 'row': return item.row.name;
    case 'ops': return counted(item.ops.length, 'op');
    default: return fill(item.name, member);
  }
}

function labelOf(one) {
  if (one.kind === 'module') return one.item.module;
  if (one.kind === 'weight') return last(fill(one.item.name, one.member));
  return nameOf(one);
}

// layers.0 and layers.31 as layers.0–31
function spanOf(names) {
  return names.length > 1 ? `${names[0]}–${last(names[names.length - 1])}` : names[0];
}

function fullName({ item, member }) {
  return item.before + fill(item.name, member);
}

function childrenOf(parent) {
  if (parent.children && parent.children.of === parent.chosen) return parent.children;
  let made = [];
  if (parent.kind === 'stack') {
    const member = parent.item.members[parent.chosen];
    made = folded(parent.item.kinds[member.kind].parts).map((item) => node(item, member, parent));
  } else if (parent.kind === 'module') {
    made = folded(parent.item.parts).map((item) => node(item, parent.member, parent));
  } else if (parent.kind === 'ops') {
    made = parent.item.ops.map((item) => node(item, parent.member, parent));
  } else if (parent.kind === 'rows') {
    made = parent.item.list.map((row) => node(row, null, parent));
  }
  made.of = parent.chosen;
  parent.children = made;
  return made;
}

// Some ops in a row, `least` or more, are one line; collectives and modules stand alone.
const foldedParts = new WeakMap();
function folded(parts, least = 3) {
  if (foldedParts.has(parts)) return foldedParts.get(parts);
  const found = [];
  let ops = [];
  const close = () => {
    found.push(...(ops.length < least ? ops : [{ ops }]));
    ops = [];
  };
  for (const part of parts) {
    if (kindOf(part) === 'op') ops.push(part);
    else { close(); found.push(part); }
  }
  close();
  foldedParts.set(parts, found);
  return found;
}

// What is inside an item: weights (by index, as often as they occur), ops, and collectives of each kind.
const totalsOf = new WeakMap();
function totals(item) {
  if (totalsOf.has(item)) return totalsOf.get(item);
  const sum = { weights: [], ops: 0, backward: 0, collectives: new Map() };
  const kind = kindOf(item);
  if (kind === 'weight') sum.weights.push(item.weight);
  else if (kind === 'op') { sum.ops = 1; sum.backward = item.backward ? 1 : 0; }
  else if (kind === 'collective') addCollective(sum.collectives, item.collective.kind, 1, item.collective.bytes);
  else if (kind === 'stack') item.members.forEach((one) => addTotals(sum, item.kinds[one.kind]));
  else (item.parts || item.ops || []).forEach((part) => addTotals(sum, part));
  totalsOf.set(item, sum);
  return sum;
}

function addTotals(sum, item) {
  const inside = totals(item);
  sum.weights.push(...inside.weights);
  sum.ops += inside.ops;
  sum.backward += inside.backward;
  inside.collectives.forEach(({ count, bytes }, kind) => addCollective(sum.collectives, kind, count, bytes));
}

function addCollective(collectives, kind, count, bytes) {
  const found = collectives.get(kind) || { count: 0, bytes: 0 };
  collectives.set(kind, { count: found.count + count, bytes: found.bytes + bytes });
}

function bytesOf(item) {
  return totals(item).weights.reduce((sum, at) => sum + plan.weights[at].bytes, 0);
}

// Whether a block computes gradients and nothing else.
function isBackward(item) {
  const { ops, backward } = totals(item);
  return ops > 0 && backward === ops;
}

function heldOf(item) {
  const held = Array(plan.devices).fill(0);
  totals(item).weights.forEach((at) => plan.weights[at].held.forEach((size, rank) => { held[rank] += size; }));
  return held;
}

// The blocks of a graph from top to bottom, inputs and results included.
function blocksOf(graph) {
  const items = [...folded(graph.items, 2)];
  const rows = (title, list) => ({ rows: title, list: list.map((row) => ({ row })) });
  if (graph.inputs.length) items.unshift(rows('inputs', graph.inputs));
  items.push(rows('results', graph.results));
  const unused = plan.unused.map(({ name, weight }) => ({ weight, name, before: '', type: '', notes: [] }));
  if (unused.length) items.push({ module: 'used by no graph', parts: unused });
  return items.map((item) => node(item, null, null));
}
