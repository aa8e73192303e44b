"""HTML pages for people: one file each for training, evaluation and labelling, which loads nothing from elsewhere."""

from tlray.report.evaluation import render_evaluation
from tlray.report.page import NAME
from tlray.report.prediction import render_labelling
from tlray.report.prediction_facts import LabellingFacts, gather_labelling
from tlray.report.shift import compare_with_validation
from tlray.report.thumbnails import Reader, read_files
from tlray.report.training import render_training

__all__ = [
    "NAME",
    "LabellingFacts",
    "Reader",
    "compare_with_validation",
    "gather_labelling",
    "read_files",
    "render_evaluation",
    "render_labelling",
    "render_training",
]
