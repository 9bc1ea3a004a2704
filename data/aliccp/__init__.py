"""Alibaba Click and Conversion Prediction: click, and purchase given a click."""
