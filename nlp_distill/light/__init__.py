"""Predict without torch: tokenizers, ONNX Runtime and numpy, for classification and question answering.

Answers are those of Optimum's pipeline around the same files, digit for digit; tests compare them. Importing Optimum
costs seconds and half a gigabyte, which a server on two cores has better uses for.
"""

from __future__ import annotations

from nlp_distill.light.classification import LightClassifier
from nlp_distill.light.door import light_task, load_light
from nlp_distill.light.question_answering import LightAnswerer

__all__ = ["LightAnswerer", "LightClassifier", "light_task", "load_light"]
