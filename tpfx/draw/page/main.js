// The page: its head, its tabs, and the graph that is on show.

const tabs = document.getElementById('tabs');
let shown = 0;

function figure(name, value, note, data = {}) {
  return make('div', {}, make('dt', {}, name), make('dd', data, value), make('dd', { class: 'note' }, note || ''));
}

function drawHead(graph) {
  document.getElementById('model').replaceChildren(...plan.model.split(/(?=[A-Z][a-z])/).flatMap((part) => [part, make('wbr')]));
  const devices = plan.devices === 1 ? 'on one device' : `split over ${plan.devices} devices`;
  document.getElementById('subtitle').textContent = `${devices} · planned by tpfx ${plan.tpfx}`;
  const most = Math.max(...plan.bytes_per_device);
  const count = graph.collectives.reduce((sum, one) => sum + one.count, 0);
  const sent = graph.collectives.reduce((sum, one) => sum + one.bytes, 0);
  const kinds = new Map();
  graph.collectives.forEach((one) => kinds.set(one.kind, (kinds.get(one.kind) || 0) + one.count));
  const { seconds, messages, tokens, unit } = graph.estimate;
  document.getElementById('figures').replaceChildren(
    figure('Weights', bytesText(plan.total_bytes), 'unsharded', { 'data-bytes': plan.total_bytes, 'data-kind': 'total' }),
    figure('Most on a device', bytesText(most), `${percent(most, plan.total_bytes)} of the whole`, { 'data-bytes': most, 'data-kind': 'most' }),
    figure('Collectives', count.toLocaleString('en'), count ? `${bytesText(sent)}: ${[...kinds].map(([kind, each]) => `${each} ${kind}`).join(', ')}` : 'nothing is sent',
      { 'data-bytes': sent, 'data-count': count, 'data-kind': 'collectives' }),
    figure('Time, predicted', secondsText(seconds), `${counted(tokens, unit)}, ${seconds ? Math.round((100 * messages) / seconds) : 0} % in collectives`,
      { 'data-seconds': seconds, 'data-kind': 'seconds' }),
    figure('This choice is', graph.optimal ? 'proven cheapest' : 'not proven', `of all splits of ${counted(graph.ops, 'op')}`, { 'data-optimal': graph.optimal, 'data-kind': 'optimal' }),
  );
}

function titleOf(graph) {
  const alike = plan.graphs.filter((one) => one.phase === graph.phase);
  const number = alike.length > 1 ? ` ${alike.indexOf(graph) + 1}` : '';
  return `${graph.called}${number}`;
}

// A list of tabs: arrows go from one to the next.
function tabList(list, names, choose) {
  list.replaceChildren(...names.map(([id, text, panel], at) => {
    const tab = make('button', { type: 'button', role: 'tab', id, 'aria-controls': panel }, text);
    tab.addEventListener('click', () => choose(at));
    return tab;
  }));
  list.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = [...list.children].findIndex((tab) => tab.getAttribute('aria-selected') === 'true');
    const to = (at + step + list.children.length) % list.children.length;
    choose(to);
    list.children[to].focus();
  };
}

function markTab(list, at) {
  [...list.children].forEach((tab, each) => {
    tab.setAttribute('aria-selected', String(each === at));
    tab.tabIndex = each === at ? 0 : -1;
  });
}

// The overview: one of several views of the graph that is on show.
const VIEWS = [
  ['devices', 'Memory by device', devicesView],
  ['layers', 'Memory by layer', layersView],
  ['time', 'Time', timeView],
  ['compare', 'Numbers of devices', compareView],
].filter(([name]) => name !== 'compare' || data.sheets.length > 1);
let viewed = VIEWS.length - 1 === 3 ? 3 : 0;

function drawView() {
  const [name, , draw] = VIEWS[viewed];
  const panel = document.getElementById('view');
  markTab(document.getElementById('views'), viewed);
  panel.setAttribute('aria-labelledby', `view-${name}`);
  panel.replaceChildren(...draw(plan.graphs[shown]).filter(Boolean));
}

function drawCounts() {
  const box = document.getElementById('counts');
  box.hidden = data.sheets.length < 2;
  box.replaceChildren(...data.sheets.map((sheet, at) => {
    const button = make('button', { type: 'button', 'aria-pressed': String(sheet === plan), 'aria-label': counted(sheet.devices, 'device') }, `${sheet.devices}`);
    button.addEventListener('click', () => { showSheet(at); box.children[at].focus(); });
    return button;
  }), make('span', { class: 'muted', 'aria-hidden': 'true' }, 'devices'));
}

function drawVerdict() {
  const lines = plan.verdict ? plan.verdict.lines : [];
  const listed = (some) => make('dl', {}, ...some.flatMap(([what, text]) => [make('dt', {}, what), make('dd', {}, text)]));
  const more = lines.filter(([what]) => ['undivided', 'assumed'].includes(what));
  const box = document.getElementById('verdict');
  box.hidden = !lines.length;
  box.dataset.fits = plan.verdict ? plan.verdict.fits : '';
  box.replaceChildren(listed(lines.filter((line) => !more.includes(line))),
    make('details', {}, make('summary', {}, `${more.map(([what]) => what).join(', ')} …`), listed(more)));
}

function showSheet(at) {
  plan = data.sheets[at];
  document.title = `${plan.model} on ${counted(plan.devices, 'device')} · tpfx`;
  drawCounts();
  drawVerdict();
  show(Math.min(shown, plan.graphs.length - 1));
}

function show(at) {
  shown = at;
  const graph = plan.graphs[at];
  markTab(tabs, at);
  index = names = null;
  current = null;
  document.body.classList.remove('explaining');
  drawHead(graph);
  const panel = document.getElementById('graph');
  panel.setAttribute('aria-labelledby', `tab-${at}`);
  const remarks = graph.summary.slice(1);
  panel.replaceChildren(...(remarks.length ? [make('p', { class: 'remarks' }, ...remarks.map((line) => make('span', {}, line)))] : []), drawTree(graph));
  details.replaceChildren(...introduction());
  drawView();
}

document.addEventListener('keydown', (event) => {
  if (event.key === '/' && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) {
    event.preventDefault();
    box.focus();
    box.select();
  } else if (event.key === 'Escape') shut();
});

tabList(tabs, plan.graphs.map((graph, at) => [`tab-${at}`, titleOf(graph), 'graph']), show);
tabList(document.getElementById('views'), VIEWS.map(([name, text]) => [`view-${name}`, text, 'view']), (at) => { viewed = at; drawView(); });
showSheet(data.shown);
if (location.hash) {
  const name = decodeURIComponent(location.hash.slice(1));
  const entry = entriesOf().find((each) => each.name === name);
  if (entry) reveal(entry);
}
