"""The Python examples of the README, by the section they stand in."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def examples(section):
    """Those below the heading `section`, up to the next heading."""
    (text,) = re.findall(rf"^#+ {section}\n(.*?)^#", README, re.DOTALL | re.MULTILINE)
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)
