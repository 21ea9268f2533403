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
  if (!weight.shards.length) box.append(make('span', { class: plan.devices > 1 ? 'bar everywhere' : 'bar only' }));
  for (const [dim, owned] of weight.shards) box.append(splitBar(owned, weight.shape[dim], weight.cuts[dim]));
  return box;
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
  if (!weight.shards.length) return plan.devices > 1 ? 'whole, on every device' : 'whole';
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
