"""Which English text each Chinese one was written beside.

    python -m tests.translations [NAME ...]     after the Chinese text NAME (or all) follows the English one again

`translated.json` holds a hash of the English text for each entry of the locales, each text of a policy that is listed
in the help pages, each help page, and three sections of the README; a test names those whose English has changed
since.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from packforcing_core.cache.config import DOCUMENTED_PRESETS

PACK = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_name("translated.json")


def texts(entry: dict, name: str) -> Iterator[tuple[str, str]]:
    """(dotted name, text) of every text in a locale's JSON."""
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from texts(value, f"{name}.{key}")
        else:
            yield f"{name}.{key}", value


def english() -> dict[str, str]:
    """The hash of each English text that has a Chinese one, by name."""
    found: dict[str, str] = {}
    for file in ("main", "nodeDefs"):
        path = PACK / "locales" / "en" / f"{file}.json"
        found.update(texts(json.loads(path.read_text(encoding="utf-8")), file))
    for title, policy in DOCUMENTED_PRESETS.items():
        found[f"policies.{title}"] = policy.keeps
        found.update((f"policies.{title}.{knob.name}", knob.help) for knob in policy.knobs())
    docs = PACK / "nodes" / "web" / "docs"
    found.update((page.name, page.read_text(encoding="utf-8")) for page in docs.glob("*.md"))
    readme = (PACK / "README.md").read_text(encoding="utf-8")
    for title in ("Can I run it?", "First video", "What to expect"):
        found[f"README.{title}"] = readme.split(f"## {title}\n")[1].split("\n## ")[0]
    return {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in sorted(found.items())}


def recorded() -> dict[str, str]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def main() -> None:
    now, names = english(), sys.argv[1:]
    chosen = {name: text for name, text in now.items() if not names or any(name.startswith(n) for n in names)}
    kept = {name: text for name, text in (recorded() if RECORD.exists() else {}).items() if name in now}
    RECORD.write_text(json.dumps(dict(sorted((kept | chosen).items())), indent=1) + "\n", encoding="utf-8")
    print(f"{len(chosen)} of {len(now)} texts recorded as translated")


if __name__ == "__main__":
    main()
