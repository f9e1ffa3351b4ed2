"""Generalised knowledge distillation (GKD, arXiv 2306.13649): the student writes, the teacher scores."""
