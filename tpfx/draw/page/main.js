// The page: its head, its tabs, and the graph that is on show.

const tabs = document.getElementById('tabs');
let shown = 0;

function figure(name, value, note, data = {}) {
  return make('div', {}, make('dt', {}, name), make('dd', data, value), make('dd', { class: 'note' }, note || ''));
}

function drawHead(graph) {
  document.getElementById('model').textContent = plan.model;
  const devices = plan.devices === 1 ? 'on one device' : `split over ${plan.devices} devices`;
  document.getElementById('subtitle').textContent = `${devices} · planned by tpfx ${plan.tpfx}`;
  const most = Math.max(...plan.bytes_per_device);
  const count = graph.collectives.reduce((sum, one) => sum + one.count, 0);
  const sent = graph.collectives.reduce((sum, one) => sum + one.bytes, 0);
  const kinds = new Map();
  graph.collectives.forEach((one) => kinds.set(one.kind, (kinds.get(one.kind) || 0) + one.count));
  const { seconds, messages, tokens } = graph.estimate;
  document.getElementById('figures').replaceChildren(
    figure('Weights', bytesText(plan.total_bytes), 'unsharded', { 'data-bytes': plan.total_bytes, 'data-kind': 'total' }),
    figure('Most on a device', bytesText(most), `${percent(most, plan.total_bytes)} of the whole`, { 'data-bytes': most, 'data-kind': 'most' }),
    figure('Collectives', count.toLocaleString('en'), count ? `${bytesText(sent)}: ${[...kinds].map(([kind, each]) => `${each} ${kind}`).join(', ')}` : 'nothing is sent',
      { 'data-bytes': sent, 'data-count': count, 'data-kind': 'collectives' }),
    figure('Time, predicted', secondsText(seconds), `${counted(tokens, 'token')}, ${seconds ? Math.round((100 * messages) / seconds) : 0} % in collectives`,
      { 'data-seconds': seconds, 'data-kind': 'seconds' }),
    figure('This choice is', graph.optimal ? 'proven cheapest' : 'not proven', `of all splits of ${counted(graph.ops, 'op')}`, { 'data-optimal': graph.optimal, 'data-kind': 'optimal' }),
  );
}

function titleOf(graph, at) {
  const alike = plan.graphs.filter((one) => one.phase === graph.phase);
  const number = alike.length > 1 ? ` ${alike.indexOf(graph) + 1}` : '';
  return `${graph.phase}${number}`;
}

function drawTabs() {
  tabs.replaceChildren(...plan.graphs.map((graph, at) => {
    const tab = make('button', { type: 'button', role: 'tab', id: `tab-${at}`, 'aria-controls': 'graph' }, titleOf(graph, at));
    tab.addEventListener('click', () => show(at));
    return tab;
  }));
  tabs.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    show((shown + step + plan.graphs.length) % plan.graphs.length);
    tabs.children[shown].focus();
  });
}

function show(at) {
  shown = at;
  const graph = plan.graphs[at];
  [...tabs.children].forEach((tab, each) => {
    tab.setAttribute('aria-selected', String(each === at));
    tab.tabIndex = each === at ? 0 : -1;
  });
  index = names = null;
  current = null;
  document.body.classList.remove('explaining');
  drawHead(graph);
  document.getElementById('devices').replaceChildren(deviceTable(graph));
  const panel = document.getElementById('graph');
  panel.setAttribute('aria-labelledby', `tab-${at}`);
  const remarks = graph.summary.slice(1);
  panel.replaceChildren(...(remarks.length ? [make('p', { class: 'remarks' }, ...remarks.map((line) => make('span', {}, line)))] : []), drawTree(graph));
  details.replaceChildren(...introduction());
}

document.addEventListener('keydown', (event) => {
  if (event.key === '/' && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) {
    event.preventDefault();
    box.focus();
    box.select();
  } else if (event.key === 'Escape') shut();
});

drawTabs();
show(0);
if (location.hash) {
  const name = decodeURIComponent(location.hash.slice(1));
  const entry = entriesOf().find((each) => each.name === name);
  if (entry) reveal(entry);
}
