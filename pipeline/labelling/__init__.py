"""Every object labelled exactly once, and a page to look at what came out.

The job is :class:`LabelJob` with its :class:`LabelConfig`; what lies at the root of its output is kept
correct at every moment by the sink (``sink.py`` says how).
"""

from pipeline.labelling.job import LabelConfig, LabelJob
from pipeline.labelling.report import Summary
from pipeline.labelling.windows import Windows

__all__ = ["LabelConfig", "LabelJob", "Summary", "Windows"]
