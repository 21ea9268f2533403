// How to read what is on show: nothing is explained that is not there.
function introduction() {
  const graph = plan.graphs[shown];
  const words = (text) => make('p', {}, text);
  const blocks = tree.blocks.map((one) => one.item);
  const weights = plan.weights.filter((one) => !one.unused);
  const some = (test) => weights.some(test);
  const types = JSON.stringify(graph.items);
  const divided = types.match(/[\w)]+\/\d+(?=[,\]])/);
  const keys = [
    divided && [divided[0], `a dimension divided in ${divided[0].split('/')[1]}`],
    types.includes(']+"') && ['f32[…]+', 'every device has a partial sum'],
    ['/', 'search'], ['↑ ↓ ← →', 'move, unfold, fold'], ['a … z', 'to the next name that begins so'], ['Enter', 'explain'], ['Esc', 'close'],
  ].filter(Boolean);
  return [
    make('h2', {}, 'How to read this'),
    words(`Blocks run from top to bottom${blocks.some((item) => item.kinds && item.members.length > 1) ? '; layers that are alike are one block, with their number' : ''}.`),
    words('An arrow is as thick as what flows on one device: activations that later blocks need.'),
    graph.collectives.length ? words('A pill on an arrow is a collective: its kind, and the size of the whole value.') : null,
    plan.devices > 1 ? make('div', { class: 'legend' }, ...Array.from({ length: Math.min(plan.devices, 16) }, (_, rank) => make('span', {}, swatch(rank), `device ${rank}`))) : null,
    some((one) => one.shards.length) ? words('A bar is a weight, from its first row or column to its last: a colour is the shard that one device holds.') : null,
    plan.devices > 1 && some((one) => !one.shards.length) ? words('A hatched bar is a weight that every device holds whole.') : null,
    some((one) => Object.values(one.cuts).some((cuts) => cuts.length)) ? words('A dashed line is where one of several weights that are packed in one ends.') : null,
    plan.devices > 1 ? words('Choose a weight or an op to see what every other way would cost.') : null,
    make('table', { class: 'keys' }, make('tbody', {}, ...keys.map(([key, text]) => make('tr', {}, make('td', {}, make('kbd', {}, key)), make('td', {}, text))))),
  ].filter(Boolean);
}
