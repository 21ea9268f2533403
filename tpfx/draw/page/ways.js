// The ways in which an op or a weight can be divided, and what each costs.

function otherWays(one, ways) {
  if (!ways) return [];
  const most = Math.max(...ways.map(([, , more]) => more), Number.MIN_VALUE);
  const rows = ways.map(([text, chosen, more]) => {
    const bar = make('i', { 'aria-hidden': 'true' });
    bar.style.width = `${(100 * more) / most}%`;
    return make('tr', { class: chosen ? 'chosen' : null, 'data-more': more }, make('th', { scope: 'row' }, text, bar),
      make('td', { class: 'number' }, chosen ? 'chosen' : more ? `+ ${secondsText(more)}` : 'as cheap'));
  });
  const first = firstLike(one);
  const of = first && first.name !== one.member.name ? ` They are those of ${first.name}, which is alike.` : '';
  return [field('Ways, and what they cost', make('table', { class: 'ways' }, make('tbody', {}, ...rows)),
    make('p', { class: 'muted' }, `Each in the cheapest plan that has it: seconds more, with a price on memory.${of}`))];
}
