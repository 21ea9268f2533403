// The explanation of a node: what it is, why it is divided so, and where in the model's code it stands.

const details = document.getElementById('details');
const said = document.getElementById('said');

const REASONS = [
  [/^column, /, () => 'Column parallel: each device has some of the output features (n), and computes these alone. Nothing is sent.'],
  [/^row, /, () => 'Row parallel: each device has some of the features that are summed over (k). Each gets a partial sum of the whole result, marked +; an all_reduce adds them up, now or later.'],
  [/^split (.*)/, (found) => `Each device computes its shard, divided along axis ${found[1]}. Nothing is sent.`],
  [/^partial sum/, () => 'Works on partial sums: the sum over the devices is still to come, so nothing is sent here.'],
  [/^whole: random/, () => 'Runs whole: random numbers are drawn once and shared, so that they are those of the unsharded model.'],
  [/^whole: no rule/, () => 'Runs whole on every device: there is no rule for this op.'],
  [/^\d+(\+\d+)+$/, (found) => `Not divided evenly: the devices have ${found[0].replaceAll('+', ', ')} units, in this order.`],
  [/^state/, () => 'Kept from an earlier call.'],
  [/^gathered/, () => 'Split over the devices, and put together for the caller.'],
];

const COLLECTIVES = {
  all_reduce: 'Every device has a partial sum. They are added up, and every device gets the sum.',
  all_gather: 'Every device sends its shard, and every device gets the whole.',
  gather: 'The shards of a result are put together for the caller.',
};

const MOVES = {
  shard: 'Each device takes its shard of a value that it has whole. Nothing is sent.',
  to_partial: 'A value that every device has becomes a partial sum: one device keeps it, the others take zero. Nothing is sent.',
};

function explain(one) {
  if (current && current.element) current.element.setAttribute('aria-selected', 'false');
  current = one;
  one.element.setAttribute('aria-selected', 'true');
  details.replaceChildren(
    make('button', { type: 'button', class: 'close', 'aria-label': 'Close the explanation (Esc)' }, '×'),
    ...explanation(one),
  );
  details.querySelector('.close').addEventListener('click', shut);
  details.scrollTop = 0;
  document.body.classList.add('explaining');
  said.textContent = `${nameOf(one)} is explained in the region Explanation.`;
  history.replaceState(null, '', `#${encodeURIComponent(nameOf(one))}`);
}

function shut() {
  const before = current;
  if (!before) return;
  before.element.setAttribute('aria-selected', 'false');
  current = null;
  document.body.classList.remove('explaining');
  details.replaceChildren(...introduction());
  said.textContent = '';
  history.replaceState(null, '', location.pathname);
  if (before.element.isConnected) focusOn(before);
}

function explanation(one) {
  switch (one.kind) {
    case 'weight': return weightExplanation(one);
    case 'op':
    case 'collective': return opExplanation(one);
    case 'row': return [...heading(one, 'value'), field('Type', code(one.item.row.type)), ...reasons(one.item.row.notes, one.item.row.type)];
    case 'rows': return [...heading(one, 'of this graph'), make('p', {}, counted(one.item.list.length, 'line'))];
    default: return blockExplanation(one);
  }
}

function heading(one, what) {
  return [make('p', { class: 'what' }, what), make('h2', {}, ...breakable(nameOf(one)))];
}

// A long name may break after a dot or an underscore, and nowhere else.
function breakable(name) {
  return name.split(/(?<=[._/])/).flatMap((part) => [part, make('wbr')]);
}

function field(title, ...content) {
  return make('div', { class: 'field' }, make('h3', {}, title), ...content);
}

function code(text) {
  return make('code', {}, text);
}

function opExplanation(one) {
  const { item, member } = one;
  const type = fill(item.type, member);
  const parts = [...heading(one, item.collective ? 'collective' : item.backward ? 'op of the backward pass' : 'op')];
  if (item.collective) {
    parts.push(make('p', { class: 'figure' }, collectivePill(item.collective.kind, 1, item.collective.bytes)), make('p', {}, COLLECTIVES[item.collective.kind]),
      make('p', { class: 'muted' }, `${item.collective.bytes.toLocaleString('en')} bytes: the size of the whole value.`));
  } else {
    if (item.notes.length) parts.push(make('p', { class: 'figure' }, ...chips(item.notes)));
    parts.push(...reasons(item.notes, type, opWord(item)));
  }
  parts.push(...otherWays(one, item.ways), field('Call', linked(fill(item.call, member))), field('Result', code(type), ...typeWords(type)));
  if (item.seconds) parts.push(field('Time, predicted', make('p', {}, rangeText(item.seconds, secondsText), plan.devices > 1 && !item.collective ? ' on each device' : '')));
  if (item.source) parts.push(field('Source', make('code', { class: 'source' }, ...breakable(item.source.split('/site-packages/').pop()))));
  return parts;
}

function rangeText(numbers, text) {
  const [least, most] = [Math.min(...numbers), Math.max(...numbers)];
  return least === most ? text(most) : `${text(least)} – ${text(most)}`;
}

function reasons(notes, type, word = '') {
  const found = (notes || []).flatMap((note) => REASONS.filter(([pattern]) => pattern.test(note)).map(([pattern, text]) => text(note.match(pattern))));
  if (!found.length && word) {
    if (MOVES[word]) found.push(MOVES[word]);
    else if (/\/\d/.test(type)) found.push('Each device works on its own shard of the value. Nothing is sent.');
    else if (/\]\+/.test(type)) found.push('Each device works on its partial sum. Nothing is sent.');
    else found.push('Every device computes all of it: that costs less than to divide it and to send.');
  }
  return found.map((text) => make('p', {}, text));
}

function typeWords(type) {
  const found = [];
  const parts = type.match(/([\w*() +]+)\/(\d+)/);
  if (parts) found.push(make('p', { class: 'muted' }, `${parts[1].trim()}/${parts[2]}: divided in ${parts[2]}.`));
  if (/\]\+/.test(type)) found.push(make('p', { class: 'muted' }, '+: every device has a partial sum of the whole.'));
  return found;
}

// A call, in which names lead to what they name.
function linked(text) {
  const names = nameIndex();
  const box = make('code', { class: 'call' });
  for (const part of text.split(/([\w.]*[A-Za-z_][\w.]*(?:\[\d+\])?)/)) {
    const entry = names.get(part);
    if (!entry || (current && nameOf(current) === part)) { box.append(part); continue; }
    const link = make('button', { type: 'button', class: 'link' }, ...breakable(part));
    link.addEventListener('click', () => reveal(entry));
    box.append(link);
  }
  return box;
}

function weightExplanation(one) {
  const weight = plan.weights[one.item.weight];
  const parts = [make('p', { class: 'what' }, weight.kind), make('h2', {}, ...breakable(fullName(one)))];
  parts.push(make('p', { class: 'figure' }, make('b', {}, bytesText(weight.bytes)), make('code', {}, `${weight.dtype}[${weight.shape.join(', ')}]`)));
  parts.push(make('p', {}, weightSentence(weight)), ...reasons(one.item.notes, ''), ...otherWays(one, one.item.ways));
  if (weight.axes.length) parts.push(field('Dimensions', ...weight.shape.map((extent, dim) => dimension(weight, dim, extent)), axesWords(weight)));
  parts.push(field('Each device', heldTable(weight)));
  const used = usersOf(one);
  if (used.length) parts.push(field('Used by', ...used.map((entry) => make('div', {}, linked(entry.name)))));
  return parts;
}

function weightSentence(weight) {
  if (plan.devices === 1) return 'The device holds all of it.';
  if (!weight.shards.length) return `${weight.unused ? 'No graph uses it. ' : ''}Every one of the ${plan.devices} devices holds all of it.`;
  const dims = weight.shards.map(([dim]) => `${dim} (of ${weight.shape[dim]})`).join(' and ');
  const packed = weight.shards.some(([, owned]) => owned.some((intervals) => intervals.length > 1));
  if (weight.unused) return `No graph uses it: it is divided evenly as storage, along dimension ${dims}.`;
  return `Divided along dimension ${dims}.${packed ? ' Several parts are packed in it, and each device has its share of each.' : ''}`;
}

function dimension(weight, dim, extent) {
  const shard = weight.shards.find(([at]) => at === dim);
  const box = make('div', { class: 'dimension' }, make('span', { class: 'muted' }, `${dim}`), code(weight.axes[dim]),
    make('span', { class: 'muted' }, shard ? 'divided' : 'whole'));
  if (shard) box.append(splitBar(shard[1], extent, weight.cuts[dim]), make('span', { class: 'scale muted' }, make('span', {}, '0'), make('span', {}, `${extent}`)));
  return box;
}

function axesWords(weight) {
  const text = weight.axes.join(' ');
  const words = ['a:64 is an axis of 64, with the same letter wherever it occurs in this layer.'];
  if (text.includes('(')) words.push('(a:8 b:64): a product, outermost first.');
  if (text.includes('[')) words.push('[x|y]: parts laid end to end.');
  return make('p', { class: 'muted' }, words.join(' '));
}

function heldTable(weight) {
  const rows = weight.held.map((bytes, rank) => make('tr', {}, make('th', { scope: 'row' }, swatch(rank), `${rank}`),
    weight.axes ? make('td', {}, code(shardText(weight, rank))) : null,
    make('td', { class: 'number', 'data-bytes': bytes }, bytesText(bytes)), make('td', { class: 'number muted' }, percent(bytes, weight.bytes))));
  return make('table', { class: 'held' }, make('tbody', {}, ...rows));
}

function shardText(weight, rank) {
  return weight.shards.map(([dim, owned]) => `${dim}: ${intervalsText(owned[rank])}`).join('; ') || 'all';
}

function intervalsText(intervals) {
  if (!intervals.length) return 'none';
  const shown = intervals.slice(0, 8).map(([start, stop]) => `${start}–${stop - 1}`).join(', ');
  return intervals.length > 8 ? `${shown}, … ${intervals.length} intervals` : shown;
}

function blockExplanation(one) {
  const { weights, ops, collectives } = totals(one.item);
  const several = one.kind === 'stack' && one.item.members.length > 1;
  const what = several ? `${one.item.members.length} layers` : one.kind === 'ops' ? 'ops in a row' : 'module';
  const parts = [...heading(one, what)];
  if (several && one.item.kinds.length > 1) parts.push(make('p', {}, `They are of ${one.item.kinds.length} kinds; unfold to see each layer.`));
  if (several && one.item.kinds.length === 1) parts.push(make('p', {}, 'They are alike: weights and ops of each are divided in the same way, and each has the same collectives.'));
  const facts = [];
  if (weights.length) facts.push([counted(weights.length, 'weight'), bytesText(bytesOf(one.item))]);
  facts.push([counted(ops, 'op'), '']);
  collectives.forEach(({ count, bytes }, kind) => facts.push([`${count.toLocaleString('en')} ${kind}`, bytesText(bytes)]));
  const products = (one.item.parts || []).filter((part) => part.call && /^(column|row), /.test(part.notes[0]));
  const { most, after } = aliveIn(one);
  if (most) facts.push(['activations, at most', bytesText(most)]);
  if (after) facts.push(['flow on', bytesText(after)]);
  const { compute, collective } = takes(one.item);
  if (Math.max(...compute)) facts.push(['compute, predicted', rangeText(compute, secondsText)]);
  if (collective) facts.push(['collectives, predicted', secondsText(collective)]);
  parts.push(make('table', { class: 'facts' }, make('tbody', {}, ...facts.map(([name, size]) => make('tr', {}, make('td', {}, name), make('td', { class: 'number' }, size))))));
  products.forEach((part) => parts.push(field('Product', make('p', {}, linked(fill(part.name, one.member)), ' ', ...chips(part.notes)), ...reasons(part.notes, part.type)), ...otherWays(one, part.ways)));
  const [inside, member] = several ? [one.item.kinds[one.item.members[one.chosen].kind], one.item.members[one.chosen]] : [one.item, one.member || (one.item.members || [])[0]];
  const own = weightsIn(inside.kinds ? inside.kinds[0] : inside);
  if (own.length) parts.push(field(several ? `Weights of ${member.name}` : 'Weights', ...own.slice(0, 24).map((part) => ownWeight(part, member))));
  if (weights.length) parts.push(field('Bytes of weights on each device', heldTable({ held: heldOf(one.item), bytes: bytesOf(one.item) })));
  if (one.kind === 'ops') parts.push(field('Ops', ...one.item.ops.map((op) => make('div', {}, linked(fill(op.name, one.member))))));
  return parts;
}

function weightsIn(item) {
  if (item.weight !== undefined) return [item];
  return (item.parts || []).flatMap(weightsIn);
}

function ownWeight(part, member) {
  const weight = plan.weights[part.weight];
  return make('div', { class: 'own' }, linked(fill(part.name, member)), make('code', { class: 'muted' }, part.type ? fill(part.type, member) : ''), splitBars(weight));
}
