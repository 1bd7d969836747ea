"""The Python examples of the README and of docs/usage.md, by the section they stand in."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = README + (ROOT / "docs" / "usage.md").read_text(encoding="utf-8") + "#"


def examples(section):
    """Those below the heading `section`, up to the next heading, on the CPU."""
    (text,) = re.findall(rf"^#+ {section}\n(.*?)^#", TEXT, re.DOTALL | re.MULTILINE)
    return [code.replace('"cuda"', '"cpu"') for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
