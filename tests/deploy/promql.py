"""Which metrics and labels a PromQL expression names."""

import re
from collections.abc import Iterator

_WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset", "inf", "nan"}
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


def metrics(expression: str) -> set[str]:
    """Names of metrics: what is no function, keyword, label, string or number."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", _GROUPED.sub("", bare))
    return {word for word in re.findall(r"(?<![\w.$])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])", bare) if word.lower() not in _WORDS}


def matched(expression: str) -> Iterator[tuple[str, str]]:
    """Metrics with each label that they are selected by."""
    for name, matchers in _SELECTOR.findall(expression):
        for label in _MATCHER.findall(matchers):
            yield name, label


def grouped(expression: str) -> set[str]:
    """Labels that an expression groups or joins by."""
    return {label.strip() for labels in _GROUPED.findall(expression) for label in labels.split(",")}
