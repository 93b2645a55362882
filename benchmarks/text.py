"""Numbers and tables as reports state them."""

import json
import math


def to_json(results):
    """Return results as the text of a JSON file, with infinity and NaN as strings."""
    return json.dumps(_plain(results), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value):
    """Return a value that JSON can state: infinity and NaN as text."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def table(header, rows):
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def seconds(value):
    """Return a time to three digits, in the unit that suits it; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def number(value):
    """Return a small number to two digits; a dash for None."""
    return "–" if value is None else f"{value:.1e}"
