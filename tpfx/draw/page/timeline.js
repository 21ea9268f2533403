// One call in time: what each device does, estimated, and measured where a profile says so.

let zoomed = ''; // the layer that is shown, or the whole call

function timeView(graph) {
  const sorts = [['estimated', spansOf(graph)], ['measured', measuredOf(graph)]].filter(([, spans]) => spans.length);
  if (!sorts.length) return [make('p', { class: 'caption' }, 'Nothing in this call takes time.')];
  const places = placesOf(graph);
  if (!places.some((one) => one.layer === zoomed)) zoomed = '';
  const shown = sorts.map(([sort, spans]) => [sort, zoomed ? within(spans, zoomed) : spans]).filter(([, spans]) => spans.length);
  const end = Math.max(...shown.map(([, spans]) => endOf(spans)));
  const rows = Array.from({ length: plan.devices }, (_, rank) => make('div', { class: 'lane' }, make('span', { class: 'who' }, swatch(rank), `device ${rank}`),
    make('div', { class: 'tracks' }, ...shown.map(([sort, spans]) => track(spans.filter((one) => one.rank === rank), end, sort, shown.length > 1)))));
  return [
    zoomBox(places),
    make('div', { class: 'lanes' }, zoomed ? null : ruler(graph, spansOf(graph), end), ...rows, scaleOf(end)),
    make('p', { class: 'caption plain' }, keyed('compute', 'compute'), ' ', keyed('collective', 'collectives'), ' ', keyed('wait', 'waiting for other devices')),
    ...shown.map(([sort, spans]) => make('p', { class: 'caption' }, sentence(sort, spans, shown))),
    timeTable(places, sorts),
  ];
}

// What there is to look at: layers that are alike by the first of each kind.
function placesOf(graph) {
  const seen = new Map();
  for (const { layer, items, of } of layersOf(graph)) {
    const key = of.kinds ? items : of;
    if (!seen.has(key)) seen.set(key, { layer, count: 0, layers: new Set() });
    seen.get(key).count += 1;
    seen.get(key).layers.add(layer);
  }
  const spans = spansOf(graph);
  return [...seen.values()].filter(({ layer }) => layer && spans.some((one) => one.layer === layer));
}

function within(spans, layer) {
  const found = spans.filter((one) => one.layer === layer);
  const start = Math.min(...found.map((one) => one.start));
  return found.map((one) => ({ ...one, start: one.start - start }));
}

function zoomBox(places) {
  const box = make('select', {}, make('option', { value: '' }, 'the whole call'),
    ...places.map(({ layer, count }) => make('option', { value: layer }, count > 1 ? `${layer}, one of ${count} alike` : layer)));
  box.value = zoomed;
  box.addEventListener('change', () => { zoomed = box.value; drawView(); document.querySelector('#view select').focus(); });
  return make('label', { class: 'option' }, 'Show ', box);
}

// What one device does, as a bar: a path for each kind, so that many layers stay light.
function track(spans, end, sort, named) {
  const sums = sumsOf(spans);
  const words = `${sort}: ${KINDS.filter((kind) => sums[kind]).map((kind) => `${secondsText(sums[kind])} ${kind === 'collective' ? 'collectives' : kind}`).join(', ')}`;
  const bar = drawn('svg', { class: `track ${sort}`, viewBox: '0 0 10000 1', preserveAspectRatio: 'none', role: 'img', 'aria-label': words });
  const hint = drawn('title', {});
  hint.append(words);
  bar.append(hint);
  for (const kind of KINDS) {
    const at = (seconds) => ((10000 * seconds) / end).toFixed(1);
    const path = spans.filter((one) => one.kind === kind).map(({ start, seconds }) => `M${at(start)} 0H${at(start + seconds)}V1H${at(start)}Z`).join('');
    bar.append(drawn('path', { d: path, class: kind }));
  }
  return make('div', { class: 'tracked' }, bar, named ? make('span', { class: 'muted' }, sort) : null);
}

// The blocks of the model above the lanes, as wide as they take; a click explains one.
function ruler(graph, spans, end) {
  const total = endOf(spans);
  const bar = make('div', { class: 'ruler' });
  for (const block of tree.blocks) {
    const names = new Set((block.kind === 'stack' ? block.item.members.map((one) => one.name) : [block.item.module || '']).map((name) => layerName(name, block.item)));
    const mine = ['stack', 'module'].includes(block.kind) ? spans.filter((one) => one.rank === 0 && names.has(one.layer)) : [];
    if (!mine.length) continue;
    const start = Math.min(...mine.map((one) => one.start));
    const share = (endOf(mine) - start) / end;
    const text = block.kind === 'stack' && names.size > 1 ? `${nameOf(block)} ×${names.size}` : nameOf(block);
    const part = make('button', { type: 'button', title: `${text}: ${secondsText(endOf(mine) - start)}`, 'aria-label': `${text}: ${secondsText(endOf(mine) - start)}, ${percent(endOf(mine) - start, total)} of the call` }, share > 0.08 ? text : '');
    part.style.left = `${(100 * start) / end}%`;
    part.style.width = `${100 * share}%`;
    part.style.setProperty('--layers', names.size > 48 ? 1 : names.size);
    part.addEventListener('click', () => reveal({ block, at: block.chosen, trail: [] }));
    bar.append(part);
  }
  return make('div', { class: 'lane' }, make('span', { class: 'who' }), make('div', { class: 'tracks' }, bar));
}

function scaleOf(end) {
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => make('span', {}, part ? secondsText(end * part) : '0'));
  return make('div', { class: 'lane', 'aria-hidden': 'true' }, make('span', { class: 'who' }), make('div', { class: 'ticks' }, ...ticks));
}

// The longest of the devices in words, and how a measurement compares.
function sentence(sort, spans, all) {
  const sums = Array.from({ length: plan.devices }, (_, rank) => sumsOf(spans, rank));
  const most = (kind) => Math.max(...sums.map((one) => one[kind]));
  const words = { compute: 'compute', collective: 'collectives', wait: 'waiting' };
  const parts = KINDS.filter((kind) => most(kind)).map((kind) => `${secondsText(most(kind))} ${words[kind]}`).join(', ');
  const compared = sort === 'measured' && all.length > 1 ? `; ${(endOf(spans) / endOf(all[0][1])).toPrecision(3)} times the estimate` : '';
  const where = zoomed ? ` of ${zoomed}` : '';
  return `${sort[0].toUpperCase()}${sort.slice(1)}${where}: ${secondsText(endOf(spans))}${plan.devices > 1 ? '; on a device at most' : ':'} ${parts}${compared}.`;
}

// The same by layer, as numbers.
function timeTable(places, sorts) {
  const heads = ['Layer', ...sorts.flatMap(([sort]) => KINDS.map((kind) => `${sort}: ${kind}`))];
  const rows = places.map(({ layer, count, layers }) => make('tr', {}, make('th', { scope: 'row' }, ...breakable(layer), count > 1 ? make('span', { class: 'times' }, `×${count}`) : null),
    ...sorts.flatMap(([, spans]) => KINDS.map((kind) => {
      const sums = Array.from({ length: plan.devices }, (_, rank) => sumsOf(spans.filter((one) => layers.has(one.layer)), rank)[kind]);
      return make('td', { class: 'number' }, Math.max(...sums) ? secondsText(Math.max(...sums)) : '–');
    }))));
  const made = make('table', { class: 'chart' }, make('thead', {}, make('tr', {}, ...heads.map((text, at) => make('th', { scope: 'col', class: at ? 'number' : null }, text)))), make('tbody', {}, ...rows));
  return make('details', {}, make('summary', {}, 'As a table, the longest on any device'), make('div', { class: 'scroll' }, made));
}
