"""The points of a page as the compact plain data that its script reads: a column a property, words by their number."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from hwsim.metrics import METRICS, Metric
from hwsim.report.collect import CELLS, CROWDED, NEAR, Collection, Density, Row, Summary
from hwsim.report.draw import GLYPHS
from hwsim.report.schedule import schedule_of
from models.catalog import UNITS
from models.unit import InputError, Published, Unit, fields_of

KEY_DIGITS = 16
"""of a point's key: enough to tell the points of a study apart"""
DETAIL_BYTES = 160_000
"""of each kind of detail; the points behind those that fit go without"""
MAX_ENGINES = 600
"""distinct ones whose schedules and published ratios are looked up"""
MAX_MODULES = 12
"""of a unit, those of the largest area; the others are drawn together"""
MAX_MESSAGE = 200
MAX_TRACEBACK = 2_000

WORDS = ("engine", "unit", "format", "transform", "quantizer", "activations", "network", "status", "message")
NUMBERS = {"weight_bits": "weight bits", "act_bits": "activation bits", "seed": "seed"}


def page_data(collection: Collection, rows: Sequence[Row]) -> dict[str, Any]:
    """All that the script knows of the study; `rows` are those of the collection that the page has room for."""
    order = sorted(range(len(rows)), key=lambda index: collection.ranks[rows[index]["key"]])
    front = {row["key"] for row in collection.front}
    return {
        "total": collection.total,
        "done": collection.done,
        "sampled": len(rows) < collection.total,
        "keys": [row["key"][:KEY_DIGITS] for row in rows],
        "numbers": [*_metrics(collection.summaries, rows), *_plain_numbers(rows), *_settings(rows)[0]],
        "words": [*_words(rows), *_settings(rows)[1]],
        "front": [index for index, row in enumerate(rows) if row["key"] in front],
        "axes": list(collection.axes),
        "glyphs": list(GLYPHS),
        "near": NEAR,
        "crowded": CROWDED,
        "density": _density(collection.density),
        "details": _details(rows, order),
        "energy": _energy(rows),
    }


# ---- columns


def _metrics(summaries: Mapping[str, Summary], rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    for name, summary in summaries.items():
        metric = METRICS[name]
        digits = decimals(metric)
        yield {
            "name": name,
            "title": metric.title,
            "unit": metric.unit,
            "better": metric.direction.value,
            "digits": digits,
            "grouped": "," in metric.format,
            "log": summary.logarithmic,
            "low": summary.low,
            "high": summary.high,
            "metric": True,
            "about": metric.description,
            "values": [_compact(row.get(name), digits) for row in rows],
        }


def decimals(metric: Metric) -> int:
    """Digits behind the point that people are shown."""
    found = re.search(r"\.(\d+)f", metric.format)
    return int(found[1]) if found else 0


def _compact(value: float | None, digits: int) -> float | None:
    """With two digits more than people are shown, in full where these would be rounded another way."""
    if value is None or isinstance(value, int):
        return value
    text = f"{value:.{digits + 2}f}"
    return value if text.endswith("50") else float(text)


def _rounded(value: float | None, digits: int) -> float | None:
    return value if value is None or isinstance(value, int) else round(value, digits)


def _plain_numbers(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    return [_number(name, title, [row[name] for row in rows]) for name, title in NUMBERS.items()] if rows else []


def _number(name: str, title: str, values: Sequence[int | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    return {
        "name": name,
        "title": title,
        "unit": "",
        "better": "none",
        "digits": 0,
        "grouped": False,
        "log": 0 < 7 * low < high,
        "low": low,
        "high": high,
        "metric": False,
        "about": "",
        "values": list(values),
    }


def _words(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    for name in WORDS:
        yield {"name": name, "title": name, **coded([_short(row[name] or "", MAX_MESSAGE) for row in rows])}


def _settings(rows: Sequence[Row]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The engines' parameters as the study sets them: those that are whole numbers, and the others as words."""
    numbers, words = [], []
    for name in sorted({name for row in rows for name in row["params"]}):
        values = [row["params"].get(name) for row in rows]
        if all(value is None or type(value) is int for value in values):
            numbers.append(_number(f"set_{name}", name, values))
        else:
            texts = ["" if value is None else plain_word(value) for value in values]
            words.append({"name": f"set_{name}", "title": name, **coded(texts)})
    return numbers, words


def plain_word(value: bool | int | str) -> str:
    """As a sweep file has it."""
    return str(value).lower() if isinstance(value, bool) else _short(str(value), MAX_MESSAGE)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]} ... (cut)"


def coded(values: Sequence[Any]) -> dict[str, Any]:
    """`levels`: the distinct values, and `codes`: the number of each value's level, -1 for None."""
    levels: dict[str, int] = {}
    texts = [None if value is None else json.dumps(value, sort_keys=True) for value in values]
    codes = [-1 if text is None else levels.setdefault(text, len(levels)) for text in texts]
    return {"levels": [json.loads(text) for text in levels], "codes": codes}


# ---- details of a point


def _details(rows: Sequence[Row], order: Sequence[int]) -> dict[str, Any]:
    """What a point's own page has beside its properties."""
    makers: dict[str, Callable[[Row], Any]] = {
        "hardware": _hardware,
        "schedule": _PerEngine(schedule_of),
        "published": _PerEngine(_published),
        "traceback": lambda row: _short(str(row["detail"].get("traceback") or ""), MAX_TRACEBACK) or None,
        "waves": lambda row: relative_path(row["detail"].get("waves")),
    }
    return {name: _fitting(rows, order, maker) for name, maker in makers.items()}


def _fitting(rows: Sequence[Row], order: Sequence[int], make: Callable[[Row], Any]) -> dict[str, Any]:
    """`coded`, made in that order until the distinct values take more than `DETAIL_BYTES`."""
    values: list[Any] = [None] * len(rows)
    known: set[str] = set()
    room = DETAIL_BYTES
    for index in order:
        value = make(rows[index])
        text = "" if value is None else json.dumps(value, sort_keys=True)
        room -= 0 if text in known else len(text)
        if room < 0:
            break
        known.add(text)
        values[index] = value
    return coded(values)


def _hardware(row: Row) -> Any:
    """[role, unit, parameters, area in um2, delay in ns, modules as [name, instances, area in um2 of all]] a unit."""
    found = _mapping(row["detail"].get("hardware"))
    return [_unit_of(role, _mapping(part)) for role, part in found.items()] or None


def _unit_of(role: str, part: Mapping[str, Any]) -> list[Any]:
    params = {name: plain_word(value) for name, value in _mapping(part.get("params")).items() if value is not None}
    area, delay = _rounded(_number_in(part, "area_um2"), 1), _rounded(_number_in(part, "delay_ns"), 4)
    return [role, plain_word(part.get("unit", "")), params, area, delay, _modules(part.get("modules"))]


def _modules(found: Any) -> list[list[Any]]:
    """The largest first; those behind `MAX_MODULES` together."""
    whole = [module for module in found if _is_module(module)] if isinstance(found, list | tuple) else []
    every = sorted(([name, count, round(count * own, 1)] for name, count, own in whole), key=lambda module: -module[2])
    rest = every[MAX_MODULES:]
    others = [f"({len(rest)} others)", sum(module[1] for module in rest), round(sum(module[2] for module in rest), 1)]
    return [*every[:MAX_MODULES], others] if rest else every


def _is_module(module: Any) -> bool:
    """Name, instances, area of one in um2."""
    form = (str, int, int | float)
    return isinstance(module, list | tuple) and len(module) == 3 and all(map(isinstance, module, form))


def _mapping(value: Any) -> Mapping[str, Any]:
    """What a store's free-form detail holds there, nothing where it is no mapping."""
    return value if isinstance(value, Mapping) else {}


def _number_in(part: Mapping[str, Any], name: str) -> float | None:
    value = part.get(name)
    return value if isinstance(value, int | float) else None


def engine_of(row: Row) -> tuple[str, Mapping[str, Any]]:
    """Unit and parameters of the engine, defaults included where the evaluation recorded them."""
    engine = _mapping(_mapping(row["detail"].get("hardware")).get("engine"))
    return row["unit"], _mapping(engine.get("params")) or row["params"]


class _PerEngine:
    """What is made of an engine's unit and parameters, once for each distinct one and for `MAX_ENGINES` of them."""

    def __init__(self, make: Callable[[str, Mapping[str, Any]], Any]) -> None:
        self.make = make
        self.made: dict[str, Any] = {}

    def __call__(self, row: Row) -> Any:
        name, values = engine_of(row)
        text = json.dumps([name, values], sort_keys=True)
        if text not in self.made:
            self.made[text] = self.make(name, values) if len(self.made) < MAX_ENGINES else None
        return self.made[text]


def _published(name: str, values: Mapping[str, Any]) -> Any:
    """What papers report of designs that are like this engine in all but numbers."""
    if name not in UNITS:
        return None
    try:
        made = UNITS[name].params(**values)
    except InputError:
        return None  # parameters of another version
    return list(dict.fromkeys(_anchors(UNITS[name], made))) or None


def _anchors(entry: Unit, params: Any) -> Iterable[tuple[Any, ...]]:
    """(architecture, style, baseline, source, area efficiency, energy efficiency, why ours differs)"""
    for compared in entry.compared:
        if compared.published and _kind(compared.params) == _kind(params):
            yield (compared.architecture, compared.style, compared.baseline, *_said(compared.published, compared))


def _said(published: Published, compared: Any) -> tuple[Any, ...]:
    return (published.source, published.area_efficiency, published.energy_efficiency, compared.differs)


def _kind(params: Any) -> dict[str, Any]:
    """The parameters that are words or truth values: what a design is, whatever its size."""
    return {name: value for name, value in fields_of(params) if type(value) is not int}


def relative_path(path: Any) -> str | None:
    """A path that a page may link: below its own folder, without a scheme."""
    if not isinstance(path, str) or not re.fullmatch(r"[A-Za-z0-9._/ -]{1,300}", path):
        return None
    parts = PurePosixPath(path).parts
    return None if path.startswith("/") or ".." in parts else path


def _energy(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Kind of operation -> its share of each point's energy."""
    found = [_shares(_mapping(row["detail"].get("ops"))) for row in rows]
    kinds = sorted({kind for shares in found for kind in shares})
    return {kind: [shares.get(kind) for shares in found] for kind in kinds}


def _shares(ops: Mapping[str, Any]) -> dict[str, float]:
    known = {kind: value for kind, value in ops.items() if isinstance(value, int | float) and value > 0}
    return {kind: round(value / sum(known.values()), 4) for kind, value in known.items()}


# ---- density


def _density(density: Density) -> dict[str, Any] | None:
    """`pairs`: "x y" -> for each cell with points, from the first on: cells since the last one, and points."""
    if not density:
        return None
    return {"columns": CELLS[0], "rows": CELLS[1], "pairs": {" ".join(pair): _sparse(c) for pair, c in density.items()}}


def _sparse(counts: Any) -> list[int]:
    cells = counts.nonzero()[0].tolist()
    gaps = [cell - before for before, cell in itertools.pairwise([0, *cells])]
    return [number for gap, cell in zip(gaps, cells, strict=True) for number in (gap, int(counts[cell]))]
