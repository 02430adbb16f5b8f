"""A job's report as one HTML page that opens without a network: `render(story, report)`, with live figures where there are any.

Importing this costs nothing; what draws and fills the template is imported by the first page.
"""

from services.optimization.page.live import NOTHING, Live, LiveArm
from services.optimization.page.story import Story
from services.optimization.report import Report

__all__ = ["Live", "LiveArm", "Story", "render"]


def render(story: Story, report: Report, live: Live = NOTHING) -> str:
    """The page, UTF-8 text of some hundred kilobytes; equal arguments render to equal text. Takes seconds; safe in any thread."""
    from services.optimization.page.composition import compose

    return compose(story, report, live)
