// Numbers of devices side by side: a row each, with what they need and how long a call takes.

function compareView(graph) {
  const at = plan.graphs.indexOf(graph);
  const rows = data.sheets.map((sheet, number) => compared(sheet, number, sheet.graphs[at]));
  const longest = Math.max(...rows.map((one) => one.seconds));
  const fullest = Math.max(...rows.map((one) => totalOf(one.memory)), plan.verdict ? plan.verdict.usable || 0 : 0);
  const heads = ['Plan for', `Time of ${titleOf(graph)}, predicted`, 'time', `times as fast as ${counted(rows[0].devices, 'device')}`, 'time × devices', 'collectives', 'Most on a device', 'memory'];
  if (plan.verdict) heads.push(plan.verdict.hardware);
  return [
    table('Numbers of devices', heads, rows.map((one) => compareRow(one, rows[0], longest, fullest)), [1, 6]),
    make('p', { class: 'caption plain' }, keyed('compute', 'compute'), ' ', keyed('collective', 'collectives'), ' ', keyed('weights', 'weights'), ' ',
      keyed('kept', 'kept for later calls'), ' ', keyed('activations', 'activations'), make('span', {}, 'Choose a number of devices to see its plan.')),
  ];
}

function compared(sheet, number, graph) {
  const { kept, activations, compute, messages, seconds } = graph.estimate;
  const rank = graph.fullest;
  return {
    number,
    devices: sheet.devices,
    time: { compute, collective: messages },
    seconds,
    collectives: graph.collectives.reduce((sum, one) => sum + one.count, 0),
    memory: { weights: sheet.bytes_per_device[rank], kept: kept[rank], activations: activations[rank] },
    usable: sheet.verdict ? sheet.verdict.usable : null,
    fits: sheet.verdict ? sheet.verdict.fits : null,
  };
}

function compareRow(one, first, longest, fullest) {
  const shown = data.sheets[one.number] === plan;
  const button = make('button', { type: 'button', class: 'link', 'aria-pressed': String(shown) }, counted(one.devices, 'device'));
  button.addEventListener('click', () => { showSheet(one.number); document.querySelector('#view [aria-pressed=true]').focus(); });
  const number = (title, text, data = {}) => make('td', { class: 'number', 'data-title': title, ...data }, text);
  return make('tr', { class: shown ? 'shown' : null, 'data-devices': one.devices },
    make('th', { scope: 'row' }, button),
    make('td', { class: 'barred' }, timeBar(one.time, longest)),
    number('time', secondsText(one.seconds), { 'data-seconds': one.seconds }),
    number('times as fast', (first.seconds / one.seconds).toFixed(2)),
    number('time × devices', ((one.seconds * one.devices) / (first.seconds * first.devices)).toFixed(2)),
    number('collectives', one.collectives.toLocaleString('en')),
    make('td', { class: 'barred' }, stackedBar(one.memory, fullest, 'var(--link)', one.usable)),
    number('memory', bytesText(totalOf(one.memory))),
    plan.verdict ? number(plan.verdict.hardware, one.fits === null ? 'not known' : one.fits ? 'fits' : 'does not fit', { 'data-fits': one.fits }) : null);
}

// Compute and collectives, one after the other.
function timeBar(time, longest) {
  const words = Object.entries(time).filter(([, seconds]) => seconds).map(([kind, seconds]) => `${secondsText(seconds)} ${kind === 'collective' ? 'collectives' : kind}`);
  const bar = make('div', { class: 'memory', role: 'img', 'aria-label': words.join(', '), title: words.join(', ') });
  for (const [kind, seconds] of Object.entries(time)) {
    const piece = make('i', { class: kind });
    piece.style.width = `${(100 * seconds) / longest}%`;
    bar.append(piece);
  }
  return bar;
}
