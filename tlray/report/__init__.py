"""HTML report pages, each one file that loads nothing from elsewhere.

`training`, `evaluation` and `prediction` render the pages; `measurement`, `prediction_facts` and `shift` prepare their
contents; `charts` draws SVG, `thumbnails` embeds images, and `page` formats names and numbers and holds the templates.
"""

from tlray.report.evaluation import render_evaluation
from tlray.report.page import NAME
from tlray.report.prediction import render_prediction
from tlray.report.prediction_facts import PredictionFacts, gather_prediction_facts
from tlray.report.shift import compare_with_validation
from tlray.report.thumbnails import Reader, make_reader
from tlray.report.training import render_training

__all__ = [
    "NAME",
    "PredictionFacts",
    "Reader",
    "compare_with_validation",
    "gather_prediction_facts",
    "make_reader",
    "render_evaluation",
    "render_prediction",
    "render_training",
]
