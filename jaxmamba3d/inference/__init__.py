"""Prediction of whole volumes."""

from jaxmamba3d.data import export_segmentation
from jaxmamba3d.inference.predict import make_net_predictor, predict_cases
from jaxmamba3d.inference.sliding_window import (
    WindowPredictor,
    gaussian_weights,
    make_window_predictor,
    predict_planes,
    predict_volume,
    window_positions,
)

__all__ = [
    "WindowPredictor",
    "export_segmentation",
    "gaussian_weights",
    "make_net_predictor",
    "make_window_predictor",
    "predict_cases",
    "predict_planes",
    "predict_volume",
    "window_positions",
]
