# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A leaderboard as text, Markdown and a web page."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple, Optional

from matplotlib.figure import Figure

from .statistics import CONFIDENCE

_NOTE = (
    f"Differences are paired over seeds, with Student's "
    f'{100 * CONFIDENCE:.0f} % interval. Images to reach a contestant are '
    'those seen until the first validation that is not below its final '
    'result with the same seed; none if a seed has no such. '
    'Other processors give other figures.'
)


class Entry(NamedTuple):
    """What a table shows, and the number that it is sorted by."""

    text: str
    order: Optional[float] = None


_NONE = Entry('\N{EN DASH}')
_MINUS = ' \N{MINUS SIGN} '


def _number(value: Optional[float], form: str, scale: float = 1) -> Entry:
    if value is None:
        return _NONE
    return Entry(format(value * scale, form), value)


def _percent(row: Mapping[str, Any]) -> Entry:
    std = f' ± {row["std"]:.1f}' if row['runs'] > 1 else ''
    return Entry(f'{row["mean"]:.1f}{std}', row['mean'])


def _columns(
    board: Mapping[str, Any],
) -> Iterator[tuple[str, Callable[[str, Mapping[str, Any]], Entry]]]:
    """Titles, and what each makes of a contestant's name and row."""
    measured = board['measured']
    rows = board['contestants'].values()
    has_images = any(row['images'] is not None for row in rows)

    def against(reference: str, key: str) -> Callable:
        def entry(name: str, row: Mapping[str, Any]) -> Entry:
            found = row['against'].get(reference)
            if found is None:
                return _NONE
            if key == 'difference':
                difference = found[key]
                if difference is None:
                    return _NONE
                return Entry(difference['text'], difference['mean'])
            return _number(found[key], ',.0f' if key == 'images' else '.1f')

        return entry

    def cost(key: str, form: str, scale: float = 1) -> Callable:
        return lambda name, row: _number(measured[name][key], form, scale)

    def chosen(name: str, row: Mapping[str, Any]) -> Entry:
        choice = row['chosen']
        if choice is None:
            return _NONE
        edge = ' (edge)' if choice['at_edge'] else ''
        return Entry(f'{choice["value"]:g}{edge}', choice['value'])

    yield 'contestant', lambda name, row: Entry(name)
    yield board['metric'], lambda name, row: _percent(row)
    yield 'runs', lambda name, row: _number(row['runs'], 'd')
    for name in board['references']:
        yield f'minus {name}', against(name, 'difference')
        unit = 'images' if has_images else 'epochs'
        yield f'{unit} to reach {name}', against(name, unit)
    yield 'images seen', lambda name, row: _number(row['images'], ',.0f')
    yield (
        'by the teacher',
        lambda name, row: _number(row['teacher_images'], ',.0f'),
    )
    yield 'training (s)', cost('seconds', '.1f')
    yield 'CPU (s)', cost('cpu_seconds', '.1f')
    yield 'energy (Wh)', cost('energy_kwh', '.2f', 1000)
    yield 'CO2 (g)', cost('co2_kg', '.2f', 1000)
    yield 'chosen', chosen


def tabulate(
    board: Mapping[str, Any],
) -> tuple[list[str], list[list[Entry]]]:
    """Titles and rows, without columns that are empty in all rows."""
    columns = list(_columns(board))
    rows = board['contestants'].items()
    table = [[entry(name, row) for _, entry in columns] for name, row in rows]
    used = [
        i for i in range(len(columns)) if any(row[i] != _NONE for row in table)
    ]
    titles = [columns[i][0] for i in used]
    return titles, [[row[i] for i in used] for row in table]


def as_text(board: Mapping[str, Any]) -> str:
    """For a terminal: contestants, differences, and what was chosen."""
    width = max([22, *(len(name) + 2 for name in board['contestants'])])
    metric = 'top-1 (%)' if board['metric'] == 'accuracy/top1' else 'result'
    lines = [f'{"contestant":<{width}}{metric:>14}  runs']
    for name, row in board['contestants'].items():
        std = f'± {row["std"]:.1f}' if row['runs'] > 1 else ''
        lines.append(
            f'{name:<{width}}{row["mean"]:>7.1f} {std:<6}  {row["runs"]:>4}'
        )
    lines += ['', f'paired over seeds, {100 * CONFIDENCE:.0f} % interval:']
    found = {tuple(row['pair']): row['text'] for row in board['differences']}
    for name, row in board['contestants'].items():
        for other, against in row['against'].items():
            if against['difference'] and (other, name) not in found:
                text = against['difference']['text']
                found.setdefault((name, other), text)
    for pair, text in found.items():
        lines.append(f'{" - ".join(pair):<44}{text}')
    lines.append('(other processors give other figures)')
    return '\n'.join([*lines, *_choices(board)])


def _choices(board: Mapping[str, Any]) -> list[str]:
    """A line for each search, with a warning where it was too narrow."""
    lines = []
    for name, row in board['contestants'].items():
        if row['chosen']:
            tried = row['chosen']['scores']
            scores = ', '.join(
                f'{value:g}: '
                + ('diverged' if score is None else f'{score:.1f}')
                for value, score in tried
            )
            line = f'{name} chose {row["chosen"]["value"]:g} ({scores})'
            if row['chosen']['at_edge']:
                line += ', AT THE EDGE of what was tried: try more'
            lines.append(line)
    return lines


def as_markdown(board: Mapping[str, Any]) -> str:
    """For a repository: one table, pairs, and what was chosen."""
    titles, rows = tabulate(board)
    lines = [f'# {board["title"]}', '', _line(titles)]
    lines.append(_line(['---', *['---:' for _ in titles[1:]]]))
    lines += [_line([entry.text for entry in row]) for row in rows]
    lines += ['', _NOTE, '']
    if board['differences']:
        lines += ['| difference | |', '| --- | ---: |']
    for row in board['differences']:
        lines.append(_line([_MINUS.join(row['pair']), row['text']]))
    lines += ['', *(f'* {line}' for line in _choices(board))]
    return '\n'.join(lines).rstrip() + '\n'


def _line(texts: Sequence[str]) -> str:
    return f'| {" | ".join(texts)} |'


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ padding: .25em .8em; text-align: right; white-space: nowrap; }}
th {{ border-bottom: 2px solid; cursor: pointer; white-space: normal; }}
th:first-child, td:first-child {{ text-align: left; }}
tr:nth-child(even) td {{ background: #8881; }}
.wide {{ overflow-x: auto; }} img {{ max-width: 100%; }}
</style></head><body>
<h1>{title}</h1>
{tables}
<p>{note} A click on a title sorts.</p>
<ul>{choices}</ul>
{figures}
<script>
for (const th of document.querySelectorAll('th')) th.onclick = () => {{
  const body = th.closest('table').tBodies[0], i = th.cellIndex;
  const down = th.ariaSort !== 'descending';
  for (const other of th.parentNode.cells) other.ariaSort = 'none';
  th.ariaSort = down ? 'descending' : 'ascending';
  const key = row => row.cells[i].dataset.order ?? row.cells[i].textContent;
  const compare = (a, b) => isNaN(a) || isNaN(b) ?
    isNaN(a) - isNaN(b) || String(b).localeCompare(a) * (down ? -1 : 1) :
    (b - a) * (down ? 1 : -1);
  const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)));
  body.append(...rows);
}};
</script></body></html>
"""


def as_page(board: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """One file that needs no other, nor a network: sortable, with plots."""
    titles, rows = tabulate(board)
    differences = [
        [Entry(_MINUS.join(row['pair'])), Entry(row['text'], row['mean'])]
        for row in board['differences']
    ]
    tables = _html(titles, rows)
    if differences:
        tables += _html(['difference', ''], differences)
    return _PAGE.format(
        title=escape(board['title']),
        tables=tables,
        note=escape(_NOTE),
        choices=''.join(f'<li>{escape(x)}</li>' for x in _choices(board)),
        figures='\n'.join(map(_image, figures)),
    )


def _html(titles: Sequence[str], rows: Sequence[Sequence[Entry]]) -> str:
    def data(entry: Entry) -> str:
        order = '' if entry.order is None else f' data-order="{entry.order}"'
        return f'<td{order}>{escape(entry.text)}</td>'

    head = ''.join(f'<th>{escape(title)}</th>' for title in titles)
    body = ''.join(f'<tr>{"".join(map(data, row))}</tr>\n' for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f'<tbody>{body}</tbody></table></div>\n'
    )


def _image(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format='svg', metadata=dict(Date=None))
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="" src="data:image/svg+xml;base64,{data}">'
