// Elements, and the bars that show which device holds what.

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function drawn(tag, attributes) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
}

// Eight colours that are told apart by most eyes; more devices than that go round the circle of hues.
function colourOf(rank) {
  if (plan.devices <= 8) return `var(--rank-${rank})`;
  return `oklch(var(--rank-light) 0.13 ${Math.round((rank * 137.508 + 255) % 360)})`;
}

// One bar for each dimension that is divided; one hatched bar where every device holds all.
function splitBars(weight, title = '') {
  const box = make('span', { class: 'bars', role: 'img', 'aria-label': splitText(weight), title });
  const dims = weight.shards === null ? [[null, wholeOnFirst()]] : weight.shards;
  if (!dims.length) {
    box.append(make('span', { class: 'bar everywhere' }));
    return box;
  }
  for (const [dim, owned] of dims) box.append(splitBar(owned, dim === null ? 1 : weight.shape[dim], weight.cuts[dim]));
  return box;
}

function wholeOnFirst() {
  return Array.from({ length: plan.devices }, (_, rank) => (rank ? [] : [[0, 1]]));
}

function splitBar(owned, extent, cuts = []) {
  const lanes = overlapping(owned) ? owned.length : 1;
  const bar = drawn('svg', {
    class: 'bar', viewBox: `0 0 ${extent} ${lanes}`, preserveAspectRatio: 'none', 'aria-hidden': 'true',
  });
  owned.forEach((intervals, rank) => {
    const top = lanes > 1 ? rank : 0;
    const path = intervals.map(([start, stop]) => `M${start} ${top}H${stop}V${top + 1}H${start}Z`).join('');
    const shape = drawn('path', { d: path, class: intervals.length > 40 ? 'fine' : 'part' });
    shape.style.fill = colourOf(rank);
    bar.append(shape);
  });
  cuts.forEach((at) => bar.append(drawn('path', { class: 'cut', d: `M${at} 0V${lanes}` })));
  return bar;
}

// Whether two devices hold the same part of a dimension: each then has a lane of its own.
function overlapping(owned) {
  const all = owned.flat().sort((one, other) => one[0] - other[0]);
  return all.some(([start], at) => at > 0 && start < all[at - 1][1]);
}

function splitText(weight) {
  if (weight.shards === null) return 'whole, on device 0';
  if (!weight.shards.length) return 'whole, on every device';
  return weight.shards.map(([dim]) => `dimension ${dim} divided`).join(', ');
}

// Bytes of a weight on a device: one number where all have the same.
function heldText(held) {
  const least = Math.min(...held);
  const most = Math.max(...held);
  if (least === most) return `${bytesText(most)} each`;
  const [low, unit] = bytesText(least).split(' ');
  return bytesText(most).endsWith(` ${unit}`) ? `${low} – ${bytesText(most)}` : `${bytesText(least)} – ${bytesText(most)}`;
}

function swatch(rank) {
  const made = make('span', { class: 'swatch', 'aria-hidden': 'true' });
  made.style.background = colourOf(rank);
  return made;
}

// What each device holds while a graph runs.
function deviceTable(graph) {
  const { kept, activations } = graph.estimate;
  const sums = plan.bytes_per_device.map((size, rank) => size + kept[rank] + activations[rank]);
  const most = Math.max(...sums, 1);
  const body = make('tbody');
  plan.bytes_per_device.forEach((size, rank) => {
    const bar = make('div', { class: 'memory', 'aria-hidden': 'true' });
    for (const [kind, part] of [['weights', size], ['kept', kept[rank]], ['activations', activations[rank]]]) {
      const piece = make('i', { class: kind });
      piece.style.width = `${(100 * part) / most}%`;
      piece.style.setProperty('--rank', colourOf(rank));
      bar.append(piece);
    }
    const number = (bytes, kind) =>
      make('td', { class: 'number', 'data-bytes': bytes, 'data-kind': kind, title: `${bytes.toLocaleString('en')} bytes` }, bytesText(bytes));
    body.append(make('tr', {}, make('th', { scope: 'row' }, swatch(rank), `${rank}`), make('td', { class: 'wide' }, bar),
      number(size, 'weights'), make('td', { class: 'number muted' }, percent(size, plan.total_bytes)),
      number(kept[rank], 'kept'), number(activations[rank], 'activations')));
  });
  const key = (kind, text) => make('th', { scope: 'col', class: 'number' }, make('i', { class: `key ${kind}` }), text);
  const head = make('tr', {}, make('th', { scope: 'col' }, 'Device'), make('th', { scope: 'col', class: 'wide' }, 'Memory'),
    key('weights', 'weights'), make('th', { scope: 'col', class: 'number' }, 'of the whole'),
    key('kept', 'kept for later'), key('activations', 'activations'));
  return make('table', {}, make('thead', {}, head), body);
}
