"""English around names: the indefinite article, which goes by the sound that follows."""

from __future__ import annotations

import re

_VOWELS = tuple("aeiou")  # letters stand for sounds here: wrong for "hour" and "unicorn", right for most names


def with_article(name: str, article: str = "a") -> str:
    """A name after "a" or "an"; `article` may also be "A"."""
    return f"{article}{'n' if name.lower().startswith(_VOWELS) else ''} {name}"


def sentence(template: str, name: str) -> str:
    """A template with a name in place of each `{}`; an "a" right before it becomes "an" where the name wants that."""

    def put(found: re.Match[str]) -> str:
        return with_article(name, found[1]) if found[1] else name

    return re.sub(r"(?:\b([Aa]) )?\{\}", put, template)
