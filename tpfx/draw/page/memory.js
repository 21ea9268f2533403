// Where memory goes: on each device, and on the fullest of them by layer and kind.

const MEMORY = {
  divided: 'weights',
  everywhere: 'weights whole on every device',
  kept: 'kept for later calls',
  activations: 'activations, at most',
};
let eachLayer = false; // whether layers that are alike have a row each

// What each device holds while a graph runs, of what it has.
function devicesView(graph) {
  const { kept, activations } = graph.estimate;
  const usable = plan.verdict ? plan.verdict.usable : null;
  const sums = plan.bytes_per_device.map((size, rank) => size + kept[rank] + activations[rank]);
  const most = Math.max(...sums, usable || 1);
  const rows = plan.bytes_per_device.map((size, rank) => {
    const pieces = { weights: size, kept: kept[rank], activations: activations[rank] };
    const number = (kind) => make('td', { class: 'number', 'data-bytes': pieces[kind], 'data-kind': kind, 'data-title': kind }, bytesText(pieces[kind]));
    return make('tr', {}, make('th', { scope: 'row' }, swatch(rank), `device ${rank}`), make('td', { class: 'barred' }, stackedBar(pieces, most, colourOf(rank), usable)),
      number('weights'), make('td', { class: 'number muted', 'data-title': 'of the whole' }, percent(size, plan.total_bytes)), number('kept'), number('activations'));
  });
  const heads = [['weights', 'weights'], [null, 'of the whole'], ['kept', 'kept for later'], ['activations', 'activations']];
  const text = usable ? `A bar is what a device needs of the ${bytesText(usable)} that each ${plan.verdict.hardware} has for it.` : 'A bar is what a device needs.';
  return [table('Memory of each device', ['Device', 'Memory', ...heads.map(([kind, words]) => keyed(kind, words))], rows), make('p', { class: 'caption' }, text)];
}

// The layers, alike ones in a row, and how much of each kind they have on the fullest device.
function layersView(graph) {
  const rank = graph.fullest;
  const found = memoryRows(graph, rank);
  const most = Math.max(...found.map((one) => totalOf(one.pieces)), 1);
  const kinds = Object.keys(MEMORY).filter((kind) => found.some((one) => one.pieces[kind]));
  const rows = found.map(({ name, count, pieces }) => make('tr', { 'data-layer': name },
    make('th', { scope: 'row' }, ...breakable(name), count > 1 ? make('span', { class: 'times' }, `×${count}`) : null),
    make('td', { class: 'barred' }, stackedBar(pieces, most, colourOf(rank))),
    ...kinds.map((kind) => make('td', { class: 'number', 'data-bytes': pieces[kind], 'data-kind': kind, 'data-title': MEMORY[kind] }, pieces[kind] ? bytesText(pieces[kind]) : '–'))));
  const heads = ['Layer', 'Memory', ...kinds.map((kind) => keyed(kind, MEMORY[kind]))];
  const alike = graph.items.some((item) => item.kinds && item.members.length > 1);
  const where = plan.devices > 1 ? `On device ${rank}, which needs most.` : 'On the device.';
  const text = `${where} Of ×n layers, weights and what is kept are those of all n; activations are of whatever is alive at the time, and not added up.`;
  return [alike ? unfolding() : null, table('Memory by layer', heads, rows), make('p', { class: 'caption' }, alike ? text : where)];
}

function unfolding() {
  const box = make('input', { type: 'checkbox' });
  box.checked = eachLayer;
  box.addEventListener('change', () => { eachLayer = box.checked; drawView(); document.querySelector('#view input').focus(); });
  return make('label', { class: 'option' }, box, 'each layer by itself');
}

function memoryRows(graph, rank) {
  const rows = graph.items.filter((item) => item.kinds || item.module !== undefined).flatMap((item) => {
    if (!item.kinds) return [memoryRow(item.module, 1, item, aliveIn(node(item, null, null)).most, rank)];
    const names = item.members.map((one) => one.name);
    if (!eachLayer) return [memoryRow(spanOf(names), names.length, item, aliveIn(node(item, null, null)).most, rank)];
    return item.members.map((one) => memoryRow(one.name, 1, item.kinds[one.kind], one.alive[0], rank));
  });
  const unused = plan.unused.map(({ weight }) => ({ weight }));
  if (unused.length) rows.push(memoryRow('used by no graph', 1, { module: '', parts: unused }, 0, rank));
  return rows.filter((one) => totalOf(one.pieces));
}

function memoryRow(name, count, item, activations, rank) {
  const pieces = { divided: 0, everywhere: 0, kept: takes(item).kept[rank], activations };
  totals(item).weights.forEach((at) => {
    const weight = plan.weights[at];
    pieces[weight.shards.length || plan.devices === 1 ? 'divided' : 'everywhere'] += weight.held[rank];
  });
  return { name, count, pieces };
}

function totalOf(pieces) {
  return Object.values(pieces).reduce((sum, size) => sum + size, 0);
}

// A bar of several kinds, as long as their sum; a line where the memory ends.
function stackedBar(pieces, most, colour, limit = null) {
  const words = Object.entries(pieces).filter(([, size]) => size).map(([kind, size]) => `${bytesText(size)} ${MEMORY[kind] || kind}`);
  const bar = make('div', { class: 'memory', role: 'img', 'aria-label': words.join(', '), title: words.join(', ') });
  for (const [kind, size] of Object.entries(pieces)) {
    if (!size) continue;
    const piece = make('i', { class: kind });
    piece.style.width = `${(100 * size) / most}%`;
    piece.style.setProperty('--rank', colour);
    bar.append(piece);
  }
  if (limit) {
    const end = make('i', { class: 'limit' });
    end.style.left = `${(100 * limit) / most}%`;
    bar.append(end);
  }
  return bar;
}

function keyed(kind, words) {
  return make('span', {}, kind ? make('i', { class: `key ${kind}`, 'aria-hidden': 'true' }) : null, words);
}

// A table with a caption for who does not see it: some columns are bars, all others but the first are numbers.
function table(title, heads, rows, bars = [1]) {
  const head = heads.map((text, at) => make('th', { scope: 'col', class: bars.includes(at) ? 'barred' : at ? 'number' : null }, text));
  return make('table', { class: 'chart' }, make('caption', { class: 'unseen' }, title), make('thead', {}, make('tr', {}, ...head)), make('tbody', {}, ...rows));
}
