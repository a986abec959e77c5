"""How numbers, radii and threats are written, the same in every table and figure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from robustness.certificates.limits import Limit
from robustness.results.leaderboard import Bracket, Proportion
from robustness.threat import Norm, ThreatModel, format_eps

ABSENT = "-"
SYMBOLS = {Norm.LINF: "ℓ∞", Norm.L2: "ℓ2"}


def percent(value: float) -> str:
    """A proportion in percent with one decimal, without the sign: the heading has it."""
    return f"{100 * value:.1f}"


def precisely(value: Proportion) -> str:
    """A proportion in percent, to the hundredth where there are images enough to tell."""
    return f"{100 * value.value:.2f}" if value.total >= 1000 else percent(value.value)


def points(value: float) -> str:
    """A difference of proportions in percentage points, signed; no `-0.0`."""
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def threat(norm: Norm, eps: float) -> str:
    """A threat in plain ASCII, such as `Linf 0.1`."""
    return f"{norm.value} {format_eps(eps)}"


def threat_symbol(norm: Norm, eps: float) -> str:
    """A threat for a typeset page, such as `ℓ∞ 0.1`."""
    return f"{SYMBOLS[ThreatModel(norm, eps).norm]} {format_eps(eps)}"


def radius(eps: float) -> str:
    """A radius as it is written, such as `8/255` or `0.1`."""
    return format_eps(eps)


def bracket(value: Bracket | None, dash: str = "-") -> str:
    """`certified-attacked` in percent."""
    if value is None:
        return ABSENT
    return f"{percent(value.certified.value)}{dash}{percent(value.attacked.value)}"


def interval(value: Proportion) -> str:
    """The 95% interval in percent, such as `93.1–96.4`."""
    return f"{percent(value.low)}–{percent(value.high)}"


def extent(numbers: Iterable[int], dash: str = "–") -> str:
    """`64`, or `32–64` where the numbers differ."""
    known = sorted(set(numbers))
    return ABSENT if not known else dash.join(str(n) for n in dict.fromkeys((known[0], known[-1])))


def duration(seconds: float) -> str:
    """Seconds as people say them: `41.2 s`, `3 min 2 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def moment(timestamp: str) -> str:
    """An ISO timestamp to the minute, in UTC; anything else unchanged."""
    try:
        time = datetime.fromisoformat(timestamp)
    except ValueError:
        return timestamp
    if time.tzinfo is None:
        return timestamp
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def plural(count: int, noun: str) -> str:
    """`1 model`, `2 models`, `1,024 models`."""
    ending = "" if count == 1 else "S" if noun.isupper() else "s"
    return f"{count:,} {noun}{ending}"


def counts(numbers: Mapping[str, int] | Mapping[Limit, int]) -> str:
    """Counts by name on one line: `encoder 566, prediction 33`."""
    return ", ".join(f"{name} {count:,}" for name, count in numbers.items()) or ABSENT


def setting(value: Any) -> str:
    """A suite's setting on one line; text without quotes, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def index_list(indices: Sequence[int]) -> str:
    """Sample indices in order, consecutive runs shortened: `0–63, 80`."""
    if not indices:
        return "none"
    runs = [[indices[0], indices[0]]]
    for before, index in pairwise(indices):
        if index == before + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(_run(first, last) for first, last in runs)


def _run(first: int, last: int) -> str:
    if last - first < 2:
        return ", ".join(str(i) for i in range(first, last + 1))
    return f"{first}–{last}"
