// What items take: seconds on each device, bytes for later calls, bytes of activations; and one call in time.

const KINDS = ['compute', 'collective', 'wait'];

// Seconds and bytes for later calls, on each device; of a stack those of all its layers.
const takenBy = new WeakMap();
function takes(item) {
  if (takenBy.has(item)) return takenBy.get(item);
  const sum = { compute: zeros(), collective: 0, kept: zeros() };
  const kind = kindOf(item);
  if (kind === 'collective') sum.collective = item.seconds[0];
  else if (kind === 'op') {
    sum.compute = zeros().map((_, rank) => onRank(item.seconds, rank));
    sum.kept = zeros().map((_, rank) => (item.kept ? item.kept[rank] : 0));
  } else if (kind === 'stack') item.members.forEach((one) => addTaken(sum, item.kinds[one.kind]));
  else (item.parts || item.ops || []).forEach((part) => addTaken(sum, part));
  takenBy.set(item, sum);
  return sum;
}

function addTaken(sum, item) {
  const inside = takes(item);
  sum.collective += inside.collective;
  inside.compute.forEach((seconds, rank) => { sum.compute[rank] += seconds; });
  inside.kept.forEach((bytes, rank) => { sum.kept[rank] += bytes; });
}

function zeros() {
  return Array(plan.devices).fill(0);
}

// Seconds of an op on a device: a single number is that of every device.
function onRank(seconds, rank) {
  return seconds ? (seconds.length === 1 ? seconds[0] : seconds[rank]) : 0;
}

// Bytes of activations on the fullest device: at their most while a node runs, and what flows on after it.
function aliveIn(one) {
  if (one.kind === 'stack') {
    const { members } = one.item;
    return { most: Math.max(...members.map((each) => each.alive[0])), after: members[members.length - 1].alive[1] };
  }
  const ops = opsIn(one.item).filter((op) => op.alive);
  if (!ops.length) return { most: 0, after: 0 };
  const more = aboveFirst(one);
  return { most: Math.max(...ops.map((op) => op.alive[0])) + more, after: ops[ops.length - 1].alive[1] + more };
}

// The ops of a layer have the numbers of the first layer that is like it.
function aboveFirst(one) {
  const first = firstLike(one);
  return first ? one.member.alive[1] - first.alive[1] : 0;
}

function opsIn(item) {
  if (item.call) return [item];
  return (item.parts || item.ops || []).flatMap(opsIn);
}

// One call as spans, in the form of a profile: each device computes, waits for the others, and talks to them.
const estimated = new WeakMap();
function spansOf(graph) {
  if (!estimated.has(graph)) estimated.set(graph, scheduled(graph));
  return estimated.get(graph);
}

function scheduled(graph) {
  const clock = zeros();
  const since = zeros();
  const spans = [];
  const add = (rank, layer, kind, start, seconds) => { if (seconds > 0) spans.push({ rank, layer, kind, start, seconds }); };
  const computed = (layer) => clock.forEach((now, rank) => { add(rank, layer, 'compute', since[rank], now - since[rank]); since[rank] = now; });
  const meet = (layer, seconds) => {
    computed(layer);
    const met = Math.max(...clock);
    clock.forEach((now, rank) => {
      add(rank, layer, 'wait', now, met - now);
      add(rank, layer, 'collective', met, seconds);
      clock[rank] = since[rank] = met + seconds;
    });
  };
  for (const { layer, items } of layersOf(graph)) {
    for (const op of items.flatMap(opsIn)) {
      if (op.collective) meet(layer, op.seconds[0]);
      else if (op.seconds) clock.forEach((_, rank) => { clock[rank] += onRank(op.seconds, rank); });
    }
    computed(layer);
  }
  const gathers = graph.collectives.filter((one) => one.kind === 'gather').reduce((sum, one) => sum + one.seconds, 0);
  if (gathers) meet('results', gathers);
  return spans;
}

// The layers and other blocks of a graph in the order in which they run, each by its name.
function layersOf(graph) {
  return graph.items.flatMap((item) => {
    if (item.kinds) return item.members.map((one) => ({ layer: layerName(one.name, item), items: item.kinds[one.kind].parts, of: item }));
    return [{ layer: layerName(item.module || '', item), items: [item], of: item }];
  });
}

function layerName(name, item) {
  return name && isBackward(item) ? `${name}, backward` : name;
}

// Spans that a profile has measured of a graph; of a plan for other devices, none.
function measuredOf(graph) {
  const ranks = new Set(data.measured.map((one) => one.rank));
  if (ranks.size !== plan.devices) return [];
  const known = [...new Set(layersOf(graph).map(({ layer }) => layer).filter(Boolean))].sort((one, other) => other.length - one.length);
  const inside = (path, layer) => `.${path}.`.includes(`.${layer}.`);
  const found = new Map();
  const layerOf = (path) => {
    if (!found.has(path)) found.set(path, known.find((layer) => inside(path, layer)) || '');
    return found.get(path);
  };
  return data.measured.filter((one) => plan.graphs[one.graph] === graph).map((one) => ({ ...one, layer: layerOf(one.layer) }));
}

function endOf(spans) {
  return spans.reduce((end, one) => Math.max(end, one.start + one.seconds), 0);
}

// Seconds of each kind on a device, or on all of them together.
function sumsOf(spans, rank = null) {
  const sums = Object.fromEntries(KINDS.map((kind) => [kind, 0]));
  spans.forEach((one) => { if (rank === null || one.rank === rank) sums[one.kind] += one.seconds; });
  return sums;
}
